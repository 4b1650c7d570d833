package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFuzzed: the table of reliability.md has the rooms with a fuzz test, which make fuzz runs, and
// no other.
func TestFuzzed(t *testing.T) {
	page, err := os.ReadFile("reliability.md")
	require.NoError(t, err)
	table := regexp.MustCompile(`(?s)\| room \| what is fuzzed \|\n(.*?)\n\n`).FindSubmatch(page)
	require.NotNil(t, table)
	var named []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([a-z/]+) \|`).FindAllSubmatch(table[1], -1) {
		named = append(named, string(row[1]))
	}
	var fuzzed []string
	for _, room := range roomsOfTree(t) {
		if hasFuzzTest(t, room) {
			fuzzed = append(fuzzed, room)
		}
	}
	require.Equal(t, fuzzed, sorted(named))
}

func hasFuzzTest(t *testing.T, room string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", room, "*_test.go"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if regexp.MustCompile(`(?m)^func Fuzz`).Match(text) {
			return true
		}
	}
	return false
}
