package docs

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is what the import path of each room begins with.
const module = "github.com/ambi-cni/ambi/"

// TestRooms holds together what says which room may import which: the table of
// architecture.md, the linter's rules, each room's package comment, and the imports as
// they are. A room that imports one more has to say so in all of them.
func TestRooms(t *testing.T) {
	allowed := tableOfRooms(t)
	ruled := rulesOfLinter(t)
	for _, room := range roomsOfTree(t) {
		table, ok := allowed[room]
		require.True(t, ok, "room %s is not in the table of architecture.md", room)
		imports, comment := packageAt(t, room)
		require.Equal(t, table, imports, "what room %s imports, and the table of architecture.md", room)
		rule, ok := ruled[room]
		require.True(t, ok, "room %s has no rule of depguard in .golangci.yml", room)
		require.Equal(t, table, rule, "the rule of room %s in .golangci.yml, and the table of architecture.md", room)
		for _, name := range table {
			require.Regexp(t, `imports? [^.]*\b`+name+`\b`, comment, "the package comment of %s does not say that it imports %s", room, name)
		}
		require.Contains(t, comment, "import", "the package comment of %s does not say what it may import", room)
		require.Regexp(t, "(?i)start", comment, "the package comment of %s does not say where to start reading", room)
	}
}

// tableOfRooms is what each room may import by the table.
func tableOfRooms(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile("architecture.md")
	require.NoError(t, err)
	rooms := map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\| .* \\| (.*) \\|$").FindAllStringSubmatch(string(page), -1) {
		rooms[row[1]] = sorted(strings.FieldsFunc(row[2], func(r rune) bool { return strings.ContainsRune(", –", r) }))
	}
	return rooms
}

// rulesOfLinter is what each room may import by depguard.
func rulesOfLinter(t *testing.T) map[string][]string {
	t.Helper()
	config, err := os.ReadFile("../.golangci.yml")
	require.NoError(t, err)
	rule := regexp.MustCompile(`(?m)^ +files: \["\*\*/([a-z/]+)/\*\.go", "!\$test"\]\n(?: +list-mode: lax\n +allow: \[(.*)\]\n)?`)
	rooms := map[string][]string{}
	for _, found := range rule.FindAllStringSubmatch(string(config), -1) {
		var names []string
		for path := range strings.SplitSeq(found[2], ", ") {
			if path != "" {
				names = append(names, strings.TrimSuffix(strings.TrimPrefix(path, module), "$"))
			}
		}
		rooms[found[1]] = sorted(names)
	}
	return rooms
}

// roomsOfTree are the folders that have Go code of the product.
func roomsOfTree(t *testing.T) []string {
	t.Helper()
	var rooms []string
	for _, pattern := range []string{"../*/*.go", "../*/*/*.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			room := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(file), "../"))
			if top, _, _ := strings.Cut(room, "/"); !slices.Contains([]string{"e2e", "hack", "docs"}, top) {
				rooms = append(rooms, room)
			}
		}
	}
	return sorted(rooms)
}

// packageAt is what a room imports of ours, its tests left out, and the package comment
// of its doc.go in one line.
func packageAt(t *testing.T, room string) (imports []string, comment string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", room, "*.go"))
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		require.NoError(t, err)
		if filepath.Base(file) == "doc.go" {
			comment = strings.Join(strings.Fields(f.Doc.Text()), " ")
		}
		for _, i := range f.Imports {
			if path := strings.Trim(i.Path.Value, `"`); strings.HasPrefix(path, module) {
				imports = append(imports, strings.TrimPrefix(path, module))
			}
		}
	}
	return sorted(imports), comment
}

// sorted are the names, each once, in order.
func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(append([]string{}, names...))
}
