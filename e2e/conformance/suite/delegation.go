package suite

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

// ipamKey is where the specification's own kind of delegate is configured.
const ipamKey = "ipam"

// logFolder is where the scripted delegates write their calls down.
const logFolder = stage + "/log"

// delegation is a configuration whose delegates are the scripted plugin.
type delegation struct {
	l    *lab
	conf object
}

// script is one scripted delegate.
type script struct {
	kind   string // its type; empty: delegate
	script scripted.Script
	more   object // other keys of its configuration
}

// delegate makes the configuration of the plugin one with these delegates. It makes
// the point one for plugins that delegate, and that can have that many.
func (l *lab) delegate(scripts ...script) *delegation {
	switch {
	case l.job.DelegateKey == "":
		l.inapplicable("the plugin delegates nothing in this configuration (S4 is about those that do)")
	case l.job.DelegateKey == ipamKey && len(scripts) > 1:
		l.inapplicable("the plugin has one delegate, its IPAM plugin, and the point is about several")
	}
	l.makeLog()
	var entries []object
	for _, s := range scripts {
		if s.kind == "" {
			s.kind = "delegate"
		}
		s.script.Log = logFolder
		entries = append(entries, s.more.with("type", s.kind).with("script", s.script))
	}
	var value any = entries
	if l.isOne() {
		value = entries[0]
	}
	return &delegation{l: l, conf: l.network.subject.with(l.job.DelegateKey, value)}
}

func (l *lab) makeLog() {
	l.must(os.MkdirAll(logFolder, 0o755))
	l.must(os.Chmod(logFolder, 0o777))
}

// isOne says whether the plugin has a single delegate, whose configuration is an
// object and no array.
func (l *lab) isOne() bool { return l.job.DelegateKey == ipamKey }

// attachment is one with the scripted delegates.
func (d *delegation) attachment(options ...option) *attachment {
	return d.l.newAttachment(append([]option{withConf(d.conf)}, options...)...)
}

// call is what a scripted delegate wrote down.
type delegateCall struct {
	Name  string            `json:"name"` // the type it was called as
	Path  string            `json:"path"`
	Verb  string            `json:"verb"`
	Env   map[string]string `json:"env"`
	Stdin []byte            `json:"stdin"`
}

func (c delegateCall) conf() object {
	o, _ := parseObject(c.Stdin)
	return o
}

// calls are those of these verbs, in order.
func (d *delegation) calls(verbs ...string) []delegateCall {
	files, err := filepath.Glob(logFolder + "/*.json")
	d.l.must(err)
	slices.Sort(files)
	var calls []delegateCall
	for _, file := range files {
		raw, err := os.ReadFile(file)
		d.l.must(err)
		var c delegateCall
		d.l.must(json.Unmarshal(raw, &c))
		if slices.Contains(verbs, c.Verb) {
			calls = append(calls, c)
		}
	}
	return calls
}

// forget empties the log.
func (d *delegation) forget() {
	files, err := filepath.Glob(logFolder + "/*.json")
	d.l.must(err)
	for _, file := range files {
		d.l.must(os.Remove(file))
	}
}

// folder makes a folder with the scripted plugin as files of its own, which can be
// removed and written to.
func (l *lab) folder(name string, programs ...string) string {
	dir := stage + "/" + name
	l.must(os.MkdirAll(dir, 0o755))
	for _, p := range programs {
		l.must(os.MkdirAll(filepath.Dir(filepath.Join(dir, p)), 0o755))
		l.must(copyFile(stage+"/suite/program", filepath.Join(dir, p)))
	}
	return dir
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}

// find looks for a plugin that is not under test.
func (m *machine) find(pluginType string) (string, error) {
	for _, dir := range filepath.SplitList(m.path) {
		path := filepath.Join(dir, pluginType)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no plugin %q in the folders that were given", pluginType)
}

// start runs a program as the plugin's user with these files from descriptor 3 on,
// and returns when it has become that program.
func (l *lab) start(files []*os.File, argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = files
	cmd.Dir = "/"
	cmd.SysProcAttr = credentials(l.machine.rootless)
	l.must(cmd.Start())
	return cmd
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// hide makes programs and files unusable: what is not there cannot be run or opened.
func (l *lab) hide(names ...string) (show func()) {
	nothing := stage + "/nothing"
	l.must(os.WriteFile(nothing, nil, 0))
	var covered []string
	for _, name := range names {
		path := name
		if !filepath.IsAbs(name) {
			found, err := exec.LookPath(name)
			if err != nil {
				continue // not there anyway
			}
			path = found
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || slices.Contains(covered, real) {
			continue
		}
		l.must(unix.Mount(nothing, real, "", unix.MS_BIND, ""))
		covered = append(covered, real)
	}
	return func() {
		for _, path := range covered {
			_ = unix.Unmount(path, unix.MNT_DETACH)
		}
	}
}

// inner is an attachment whose delegate is that of a conflist of its own, with these
// further keys.
func (l *lab) inner(more object, s scripted.Script) *attachment {
	l.makeLog()
	s.Log = logFolder
	list := more.with("cniVersion", l.network.version).with("name", "inner").with("plugins", []any{
		map[string]any{"type": "delegate", "script": s},
	})
	path := stage + "/inner.conflist"
	l.must(os.WriteFile(path, list.bytes(), 0o644))
	return l.newAttachment(withKey(l.job.ListKey, path))
}
