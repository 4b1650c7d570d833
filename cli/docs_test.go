package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDocumentedJSON holds the shapes of docs/cli.md and the program together: each
// example decodes into what its command prints with no member unknown, and back into
// the same, so that none is missing.
func TestDocumentedJSON(t *testing.T) {
	page, err := os.ReadFile("../docs/cli.md")
	require.NoError(t, err)
	examples := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```json ([a-z]+)\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		examples[m[1]] = m[2]
	}
	documents := map[string]any{
		"list": &[]listed{}, "inspect": &[]inspected{}, "stats": &sample{}, "port": &portsInfo{}, "logs": &logEntry{}, "restore": &restored{},
		"gc": &collected{}, "upgrade": &[]upgraded{}, "doctor": &diagnosis{}, "version": &versionInfo{}, "wrap": &wrapped{}, "names": &[]named{}, "resolve": &resolved{},
	}
	require.Len(t, examples, len(documents))
	for name, document := range documents {
		d := json.NewDecoder(strings.NewReader(examples[name]))
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(document), name)
		var out bytes.Buffer
		require.NoError(t, printJSON(&out, document))
		require.JSONEq(t, examples[name], out.String(), name)
	}
}

// Every code of a problem is in the table of the page, and none that is not.
func TestDocumentedProblems(t *testing.T) {
	page, err := os.ReadFile("../docs/cli.md")
	require.NoError(t, err)
	var codes []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z]+-?[a-z]*)` \\| .* (list, inspect|inspect) \\|$").FindAllStringSubmatch(string(page), -1) {
		codes = append(codes, m[1])
	}
	require.Len(t, codes, len(words))
	for _, code := range codes {
		require.Contains(t, words, problemCode(code))
	}
}
