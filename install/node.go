package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// Node is where a node's runtimes look.
type Node struct {
	BinDir  string // for plugins
	ConfDir string // for conflists
	// Tell is called with what was changed, or why nothing can be yet.
	Tell func(format string, args ...any)
}

// name is ambi's among the plugins: what a conflist says as type.
const name = "ambi"

// Binary has the program at the path self among the plugins, where none of ambi's name is
// or anew says so. Then it runs then, with the folder still locked: no uninstall takes the
// program away before a conflist that is made there has ambi called.
func (n Node) Binary(ctx context.Context, self string, anew bool, then func() error) error {
	d, err := n.open(ctx, n.BinDir)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := os.Lstat(d.path(name)); anew || errors.Is(err, fs.ErrNotExist) {
		if err := n.putBinary(d, self); err != nil {
			return err
		}
	}
	return then()
}

func (n Node) putBinary(d folder, self string) error {
	program, err := os.Open(self)
	if err != nil {
		return ioError(err, "reading ambi's own program")
	}
	defer program.Close()
	st, err := program.Stat()
	if err != nil {
		return ioError(err, "reading ambi's own program")
	}
	const mode = 0o755
	if same(d.path(name), program, st.Size(), mode) {
		return nil
	}
	if _, err := program.Seek(0, io.SeekStart); err != nil {
		return ioError(err, "reading ambi's own program")
	}
	if err := d.put(name, program, look{mode, -1, -1}); err != nil {
		return err
	}
	n.Tell("wrote %s", d.path(name))
	return nil
}

// Conflist has a conflist of this content, marked as ours, under this name, which ends
// in .conflist.
func (n Node) Conflist(ctx context.Context, file string, text []byte) error {
	if filepath.Base(file) != file || filepath.Ext(file) != ".conflist" {
		return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "conflist %q: runtimes read a list from files that end in .conflist", file), "rename it, such as 10-ambi.conflist; the first name of the folder counts")
	}
	list, err := parseList(file, text)
	if err != nil {
		return err
	}
	if err := list.understood(file); err != nil {
		return err
	}
	text = list.marked()
	d, err := n.openConf(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	const mode = 0o644
	if same(d.path(file), bytes.NewReader(text), int64(len(text)), mode) {
		return nil
	}
	if err := d.put(file, bytes.NewReader(text), look{mode, -1, -1}); err != nil {
		return err
	}
	n.Tell("wrote %s", d.path(file))
	n.tellFirst(d, file)
	return nil
}

// tellFirst tells when a conflist is not what containerd and CRI-O use, which is one.
func (n Node) tellFirst(d folder, file string) {
	if files, err := confFiles(d.Name()); err == nil && len(files) > 0 && files[0] < file {
		n.Tell("note that %s comes first: runtimes that take one network take that", d.path(files[0]))
	}
}

// Remove takes away what ambi has installed: its conflists and its entries in those of
// others first, then its binary. Runtimes need all of that to take attachments down
// (containerd calls no DEL without a conflist), so there have to be none.
func (n Node) Remove(ctx context.Context) error {
	if _, err := os.Stat(n.BinDir); err != nil {
		return n.removeConflists(ctx)
	}
	d, err := n.open(ctx, n.BinDir) // first of the two, as Binary does
	if err != nil {
		return err
	}
	defer d.Close()
	if err := n.removeConflists(ctx); err != nil {
		return err
	}
	return n.removeBinary(d)
}

func (n Node) removeBinary(d folder) error {
	content, err := os.ReadFile(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return ioError(err, "reading %s", d.path(name))
	}
	if !bytes.Contains(content, []byte("github.com/ambi-cni/ambi")) {
		n.Tell("left %s, which is not this ambi", d.path(name))
		return nil
	}
	if err := d.remove(name); err != nil {
		return err
	}
	n.Tell("took away %s", d.path(name))
	return nil
}

// StateDirs are the state folders that conflists name which Remove takes away, or takes
// ambi out of.
func (n Node) StateDirs() (dirs []string) {
	files, _ := confFiles(n.ConfDir) // without the folder there is none
	for _, file := range files {
		text, _, err := readFile(filepath.Join(n.ConfDir, file))
		if err != nil {
			continue
		}
		list, err := parseList(file, text)
		if err != nil || !list.isMarked() && !list.hasOurs() {
			continue
		}
		for _, raw := range list.plugins {
			var entry struct{ Type, StateDir string }
			if json.Unmarshal(raw, &entry) == nil && entry.Type == name && entry.StateDir != "" {
				dirs = append(dirs, entry.StateDir)
			}
		}
	}
	return dirs
}

func (n Node) removeConflists(ctx context.Context) error {
	if _, err := os.Stat(n.ConfDir); err != nil {
		return nil
	}
	d, err := n.openConf(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	files, err := confFiles(d.Name())
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := n.removeFrom(d, file); err != nil {
			return err
		}
	}
	return nil
}

// removeFrom takes a conflist away that is ours, or our entry out of one that is not.
func (n Node) removeFrom(d folder, file string) error {
	for range mostTries {
		text, l, err := readFile(d.path(file))
		if err != nil {
			return nil // gone meanwhile
		}
		list, err := parseList(file, text)
		switch {
		case err != nil || !list.isMarked() && !list.hasOurs():
			return nil
		case list.isMarked():
			n.Tell("took away %s", d.path(file))
			return d.remove(file)
		}
		swapped, err := d.swap(file, text, list.without(), l)
		if err != nil {
			return err
		}
		if swapped {
			n.Tell("took ambi out of %s", d.path(file))
			return nil
		}
	}
	return busyFile(d.path(file))
}

// mostTries is how often a conflist may be replaced while we edit it.
const mostTries = 20

func busyFile(path string) error {
	return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "conflist %s is replaced all the time", path), "see which plugin's pod writes it, and call it again")
}

// open is openFolder that does not wait for ever.
func (n Node) open(ctx context.Context, path string) (folder, error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	return openFolder(ctx, path)
}

// openConf opens the folder of conflists, while that of plugins is locked; which may be the
// same one, by another name too.
func (n Node) openConf(ctx context.Context) (folder, error) {
	plugins, _ := os.Stat(n.BinDir)
	if st, err := os.Stat(n.ConfDir); err != nil || !os.SameFile(st, plugins) {
		return n.open(ctx, n.ConfDir)
	}
	f, err := os.Open(n.ConfDir)
	if err != nil {
		return folder{}, ioError(err, "reading the folder %s", n.ConfDir)
	}
	return folder{f}, nil
}

// confFiles are the names of the files that libcni reads in a folder, in its order.
func confFiles(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, ioError(err, "reading the folder %s", dir)
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// readFile is a conflist and what it is like. Whoever replaces a link by a file has
// others read something else than before, so a link is an error.
func readFile(path string) ([]byte, look, error) {
	st, err := os.Lstat(path)
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "reading", Path: path, Err: errors.New("it is no regular file")}
	}
	if err != nil {
		return nil, look{}, err
	}
	text, err := os.ReadFile(path)
	return text, lookOf(st), err
}
