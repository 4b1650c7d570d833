package plugin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ambi-cni/ambi/conf"
)

// conflistDir is where runtimes look for conflists by default.
const conflistDir = "/etc/cni/net.d"

// wrap reads the conflist that the key delegates names, if it names one, and makes
// its plugins the delegates.
func wrap(n *conf.NetConf) error {
	if n.DelegatesFrom == "" {
		return nil
	}
	path, l, err := findConflist(n.DelegatesFrom)
	if err != nil {
		return err
	}
	if !l.OnlyInlined && l.Name != "" {
		more, err := besides(filepath.Join(filepath.Dir(path), l.Name))
		if err != nil {
			return err
		}
		l.Plugins = append(l.Plugins, more...)
	}
	return n.Wrap(l)
}

func findConflist(ref string) (string, *conf.Conflist, error) {
	if !filepath.IsAbs(ref) {
		return conflistNamed(ref)
	}
	l, err := readConflist(ref)
	if err != nil {
		return "", nil, err
	}
	return ref, l, nil
}

func readConflist(path string) (*conf.Conflist, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, conf.Invalid("delegates", path, fmt.Sprintf("it is the path of a conflist: %v", err))
	}
	return conf.ParseConflist(path, raw)
}

// conflistNamed finds the first conflist of that name, as runtimes order them.
// Broken files are of no matter as long as one is right.
func conflistNamed(name string) (string, *conf.Conflist, error) {
	paths, err := filepath.Glob(filepath.Join(conflistDir, "*.conflist")) // sorted
	if err != nil {
		return "", nil, err
	}
	broken := ""
	for _, path := range paths {
		l, err := readConflist(path)
		if err != nil {
			broken += "; " + err.Error()
		} else if l.Name == name {
			return path, l, nil
		}
	}
	return "", nil, conf.Invalid("delegates", name, fmt.Sprintf("no conflist in %s has this name%s; give the absolute path of one that lies elsewhere", conflistDir, broken))
}

// besides reads the plugin configurations in the folder that belongs to a conflist
// (specification section 1, "loadOnlyInlinedPlugins").
func besides(dir string) ([]json.RawMessage, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var plugins []json.RawMessage
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, conf.Invalid("delegates", path, err.Error())
		}
		if !json.Valid(raw) {
			return nil, conf.Invalid("delegates", path, "it is a file with one plugin configuration in JSON")
		}
		plugins = append(plugins, raw)
	}
	return plugins, nil
}
