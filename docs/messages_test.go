package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// TestTroubleshooting holds docs/troubleshooting.md and the source together: every
// message that the source can give has its entry, and no entry is of a message that
// is gone. "…" stands for what is filled in.
func TestTroubleshooting(t *testing.T) {
	given := messages(t, "..")
	require.Greater(t, len(given), 150, "messages found in the source")
	entries := entries(t, "troubleshooting.md")
	for text, place := range given {
		if !slices.Contains(entries, text) {
			t.Errorf("docs/troubleshooting.md has no entry for the message of %s:\n\t`%s`", place, text)
		}
	}
	for _, text := range entries {
		if given[text] == "" {
			t.Errorf("docs/troubleshooting.md has an entry for a message that nothing gives:\n\t`%s`", text)
		}
	}
}

// entries are the messages in the first column of the page's tables.
func entries(t *testing.T, page string) (all []string) {
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		cell, isRow := strings.CutPrefix(line, "| `")
		if !isRow {
			continue
		}
		cell, _, _ = strings.Cut("`"+cell, " | ")
		for message := range strings.SplitSeq(cell, "<br>") {
			all = append(all, strings.Trim(strings.TrimSpace(message), "`"))
		}
	}
	return all
}

// makers are the functions that make errors, which of their arguments are the text of
// the message, and whether that is a format.
var makers = map[string]struct {
	arguments []int
	format    bool
}{
	"Errorf":      {[]int{1}, true}, // of conf
	"invalidEnv":  {[]int{0}, true},
	"Invalid":     {[]int{2}, false},
	"Unsupported": {[]int{2}, false},
	"NetnsError":  {[]int{1, 2}, false},
	"fmt.Errorf":  {[]int{0}, true},
	"errors.New":  {[]int{0}, false},
}

// sources are the files of the program. The commands for people give a hint with
// every error of their own, so their room is left out.
func sources(t *testing.T, root string) (files []string) {
	leftOut := []string{"e2e", "hack", "docs", "cli"}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains(leftOut, d.Name())) {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			files = append(files, path)
		}
		return err
	}))
	return files
}

// messages are the texts of all errors that those make, each with a place where it
// is made.
func messages(t *testing.T, root string) map[string]string {
	all := map[string]string{}
	packages := map[string][]*ast.File{}
	files := token.NewFileSet()
	for _, path := range sources(t, root) {
		file, err := parser.ParseFile(files, path, nil, 0)
		require.NoError(t, err)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
	}
	for _, of := range packages {
		common := constantsIn(of...)
		for _, file := range of {
			for _, part := range file.Decls {
				known := common
				if f, ok := part.(*ast.FuncDecl); ok {
					known = maps.Clone(common)
					maps.Copy(known, constantsIn(f))
					for _, p := range f.Type.Params.List {
						for _, name := range p.Names {
							delete(known, name.Name)
						}
					}
				}
				ast.Inspect(part, func(n ast.Node) bool {
					call, ok := n.(*ast.CallExpr)
					if !ok {
						return true
					}
					texts, whole := textsOf(call, known)
					for _, text := range texts {
						all[text] = files.Position(call.Pos()).String()
					}
					return !whole
				})
			}
		}
	}
	return all
}

func isLetter(r rune) bool { return unicode.IsLetter(r) }

// textsOf are the texts of the error that a call makes, if it makes one. What to do about
// it, which conf.Mendf adds, is shown behind the text, and the two are one entry: then the
// text was the whole of the call.
func textsOf(call *ast.CallExpr, constants map[string]ast.Expr) (texts []string, whole bool) {
	name := ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name = f.Sel.Name
		if x, ok := f.X.(*ast.Ident); ok && (x.Name == "fmt" || x.Name == "errors") {
			name = x.Name + "." + name
		}
	}
	if inner, ok := first(call).(*ast.CallExpr); ok && name == "Mendf" {
		if texts, _ = textsOf(inner, constants); len(texts) == 0 {
			texts = []string{"…"} // made elsewhere
		}
		for i := range texts {
			texts[i] = shortened(texts[i] + "; " + expand(call.Args[1], true, constants))
		}
		return texts, true
	}
	maker := makers[name]
	for _, i := range maker.arguments {
		if i >= len(call.Args) {
			return nil, false // a function of the same name
		}
		text := shortened(expand(call.Args[i], maker.format, constants))
		if strings.ContainsFunc(text, isLetter) {
			texts = append(texts, text)
		}
	}
	return texts, false
}

func first(call *ast.CallExpr) ast.Expr {
	if len(call.Args) == 0 {
		return nil
	}
	return call.Args[0]
}

// shortened has one "…" for several.
func shortened(text string) string {
	for strings.Contains(text, "……") {
		text = strings.ReplaceAll(text, "……", "…")
	}
	return text
}

// constantsIn are the constants of a function, or those of files outside of their
// functions, by name.
func constantsIn[N ast.Node](nodes ...N) map[string]ast.Expr {
	found := map[string]ast.Expr{}
	for _, node := range nodes {
		ast.Inspect(node, func(n ast.Node) bool {
			if _, inner := n.(*ast.FuncDecl); inner && n != ast.Node(node) {
				return false
			}
			if spec, ok := n.(*ast.ValueSpec); ok {
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						found[name.Name] = spec.Values[i]
					}
				}
			}
			return true
		})
	}
	return found
}

var verb = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)

// expand is the text of an expression, of a format or as it stands, with "…" for
// what is filled in.
func expand(e ast.Expr, format bool, constants map[string]ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if e.Kind != token.STRING || err != nil {
			return "…"
		}
		if format {
			text = strings.ReplaceAll(verb.ReplaceAllString(strings.ReplaceAll(text, "%%", "\x00"), "…"), "\x00", "%")
		}
		return text
	case *ast.BinaryExpr:
		return expand(e.X, format, constants) + expand(e.Y, format, constants)
	case *ast.Ident:
		if value, ok := constants[e.Name]; ok {
			return expand(value, format, constants)
		}
	case *ast.CallExpr:
		if fmt.Sprint(e.Fun) == "&{fmt Sprintf}" {
			return expand(e.Args[0], true, constants)
		}
	}
	return "…"
}

// codes are the numbers of the codes, by the names that the source has for them.
var codes = map[string]uint{
	"ErrIncompatibleCNIVersion": types.ErrIncompatibleCNIVersion, "ErrUnsupportedField": types.ErrUnsupportedField,
	"ErrUnknownContainer": types.ErrUnknownContainer, "ErrInvalidEnvironmentVariables": types.ErrInvalidEnvironmentVariables,
	"ErrIOFailure": types.ErrIOFailure, "ErrDecodingFailure": types.ErrDecodingFailure,
	"ErrInvalidNetworkConfig": types.ErrInvalidNetworkConfig, "ErrTryAgainLater": types.ErrTryAgainLater, "ErrInternal": types.ErrInternal,
	"ErrPluginNotAvailable": conf.ErrPluginNotAvailable, "ErrLimitedConnectivity": conf.ErrLimitedConnectivity,
	"ErrNetwork": conf.ErrNetwork, "ErrPortInUse": conf.ErrPortInUse, "ErrPortPermission": conf.ErrPortPermission,
}

// TestCodes: each code that the source has a name for is in both tables of codes.
func TestCodes(t *testing.T) {
	name := regexp.MustCompile(`\b(?:types|conf)\.(Err[A-Z]\w+)`)
	found := 0
	for _, file := range sources(t, "..") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, match := range name.FindAllStringSubmatch(string(text), -1) {
			code, known := codes[match[1]]
			require.True(t, known, "%s: %s is a code that this test does not know", file, match[0])
			for _, page := range []string{"troubleshooting.md", "configuration.md"} {
				text, err := os.ReadFile(page)
				require.NoError(t, err)
				require.Contains(t, string(text), fmt.Sprintf("\n| %d | ", code), "%s of %s in %s", match[0], file, page)
			}
			found++
		}
	}
	require.Greater(t, found, 50)
}
