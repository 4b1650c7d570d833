package plugin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
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
	if err := addBesides(path, l); err != nil {
		return err
	}
	return n.Wrap(l)
}

// standsAlone says whether an entry without delegates is for sure the one that makes
// the interface, and not one behind another plugin of its conflist: STATUS and GC
// bring neither a prevResult nor the conflist. The key bridge says so, else the
// conflist of this name where runtimes, or cnitool, look for them, else what the
// records of the network have.
func (v *verbs) standsAlone() bool {
	if v.netConf.Bridge != (conf.Bridge{}) {
		return true
	}
	for _, dir := range []string{os.Getenv("NETCONFPATH"), conflistDir} {
		if !filepath.IsAbs(dir) {
			continue // not set; the current folder is nobody's
		}
		path, l, err := conflistNamed(dir, v.netConf.Name)
		if err != nil || addBesides(path, l) != nil {
			continue
		}
		for i, raw := range l.Plugins {
			if d, err := conf.ParseDelegate("", raw); err == nil && d.Type == v.netConf.Type {
				return i == 0
			}
		}
	}
	return v.recordedAlone()
}

func (v *verbs) recordedAlone() bool {
	for _, dir := range v.stateDirs {
		store, err := record.OpenExisting(dir)
		if err != nil {
			continue
		}
		records, _, _ := store.List()
		if slices.ContainsFunc(records, func(r *record.Record) bool { return r.Network == v.netConf.Name && len(r.Delegates) > 0 }) {
			return true
		}
	}
	return false
}

// aloneOnly drops the error of a built-in chain that the entry may not need: a
// runtime that is told for ever that there is no plugin bridge does not start any
// container, while ADD behind another plugin works. When ADD does need it, it has
// the same error.
func (v *verbs) aloneOnly(err error) error {
	if err == nil || !builtIn(v.netConf) || v.standsAlone() {
		return err
	}
	v.log.Info("the built-in chain does not work, which is of no matter behind another plugin", "network", v.netConf.Name, "error", err)
	return nil
}

// addBesides adds the plugins in the folder that belongs to a conflist.
func addBesides(path string, l *conf.Conflist) error {
	if l.OnlyInlined || l.Name == "" {
		return nil
	}
	more, err := besides(filepath.Join(filepath.Dir(path), l.Name))
	l.Plugins = append(l.Plugins, more...)
	return err
}

func findConflist(ref string) (string, *conf.Conflist, error) {
	if !filepath.IsAbs(ref) {
		return conflistNamed(conflistDir, ref)
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

// conflistNamed finds the first conflist of that name in a folder, as runtimes order
// them. Broken files are of no matter as long as one is right.
func conflistNamed(dir, name string) (string, *conf.Conflist, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.conflist")) // sorted
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
	return "", nil, conf.Invalid("delegates", name, fmt.Sprintf("no conflist in %s has this name%s; give the absolute path of one that lies elsewhere", dir, broken))
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
