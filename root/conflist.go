package root

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ambi-cni/ambi/conf"
)

// ConflistDir is where runtimes look for conflists by default.
const ConflistDir = "/etc/cni/net.d"

// findConflist reads the conflist that the key delegates names: by its path, or by its
// name.
func findConflist(ref string) (*conf.Conflist, error) {
	if !filepath.IsAbs(ref) {
		return conflistNamed(ConflistDir, ref)
	}
	l, err := readConflist(ref)
	if err != nil {
		return nil, err
	}
	return l, addBesides(ref, l)
}

func readConflist(path string) (*conf.Conflist, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, conf.Invalid("delegates", path, fmt.Sprintf("it is the path of a conflist: %v", err))
	}
	return conf.ParseConflist(path, raw)
}

// conflistNamed finds the first conflist of that name in a folder, as runtimes order
// them. Broken files are of no matter as long as one is right.
func conflistNamed(dir, name string) (*conf.Conflist, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.conflist")) // sorted
	if err != nil {
		return nil, err
	}
	broken := ""
	for _, path := range paths {
		l, err := readConflist(path)
		if err != nil {
			broken += "; " + err.Error()
		} else if l.Name == name {
			return l, addBesides(path, l)
		}
	}
	return nil, conf.Mendf(conf.Invalid("delegates", name, fmt.Sprintf("no conflist in %s has this name%s", dir, broken)), "give the absolute path of one that lies elsewhere")
}

// addBesides adds the plugins in the folder that belongs to a conflist.
func addBesides(path string, l *conf.Conflist) error {
	if l.OnlyInlined || l.Name == "" {
		return nil
	}
	plugins, at, err := Besides(path, l.Name)
	if err != nil {
		return conf.Invalid("delegates", at, err.Error())
	}
	l.Plugins = append(l.Plugins, plugins...)
	return nil
}

// Besides are the plugin configurations in the folder that belongs to a conflist, in the
// order of their files' names (specification section 1, "loadOnlyInlinedPlugins"). With
// an error, at is the path of the file that it is about.
func Besides(conflist, name string) (plugins []json.RawMessage, at string, err error) {
	dir := filepath.Join(filepath.Dir(conflist), name)
	paths, err := filepath.Glob(filepath.Join(dir, "*.conf")) // sorted
	if err != nil {
		return nil, dir, err
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, path, err
		}
		if !json.Valid(raw) {
			return nil, path, errors.New("it is a file with one plugin configuration in JSON")
		}
		plugins = append(plugins, raw)
	}
	return plugins, "", nil
}
