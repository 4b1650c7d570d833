package conf

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every key that the parser knows is in the reference, in backquotes.
func TestEveryKeyIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/configuration.md")
	require.NoError(t, err)
	n, m := defaults(), PortMapping{}
	for object, f := range map[string]fields{
		"the plugin entry":  n.fields(),
		"bridge":            n.Bridge.fields(),
		"portmap":           n.Portmap.fields(),
		"rootless":          n.Rootless.fields(),
		"runtimeConfig":     n.RuntimeConfig.fields(),
		"runtimeConfig.dns": n.RuntimeConfig.dnsFields(),
		"bandwidth":         n.RuntimeConfig.Bandwidth.fields(),
		"a port mapping":    m.fields(),
		"args.cni":          n.Args.fields(),
	} {
		require.NotEmpty(t, f)
		for _, key := range slices.Sorted(maps.Keys(f)) {
			require.Contains(t, string(page), "`"+key+"`", "key of %s", object)
		}
	}
	for _, key := range foreign {
		require.Contains(t, string(page), "`"+key+"`")
	}
}

// The examples of the reference are members of a plugin entry that Parse takes.
func TestDocumentedExamplesAreValid(t *testing.T) {
	page, err := os.ReadFile("../docs/configuration.md")
	require.NoError(t, err)
	examples := 0
	for _, example := range fenced(string(page)) {
		if example[0] == '{' {
			continue // a whole conflist
		}
		_, err := Parse([]byte(`{"name":"web","type":"ambi",` + example + `}`))
		require.NoError(t, err, example)
		examples++
	}
	require.GreaterOrEqual(t, examples, 6)
}

// fenced returns the JSON blocks of a page.
func fenced(page string) []string {
	var blocks []string
	for _, rest := range strings.Split(page, "```json\n")[1:] {
		block, _, _ := strings.Cut(rest, "```")
		blocks = append(blocks, block)
	}
	return blocks
}
