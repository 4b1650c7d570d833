package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// In a hub plugins run as root does on the host, and write where root writes. So the
// thread of such a hub is in a mount namespace of its own, too, in which /run and
// /var/lib/cni are fresh. What the host has in /run is to be seen in it all the same, by
// links: programs and plugins may lie there.

const (
	runFolder   = "/run"
	stateFolder = "/var/lib/cni"
	hostsOwn    = ".host" // where what a fresh folder covers is to be seen
	standIns    = runFolder + "/netns"
)

// ownFolders gives the calling thread, which is in a new mount namespace, its folders.
func ownFolders() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts of the hub: %w", err)
	}
	for _, folder := range []string{runFolder, existing(stateFolder)} {
		if err := cover(folder); err != nil {
			return fmt.Errorf("folder %s of the hub: %w", folder, err)
		}
	}
	if err := errors.Join(os.MkdirAll(stateFolder, 0o755), os.MkdirAll(standIns, 0o755), refresh(runFolder)); err != nil {
		return fmt.Errorf("folders of the hub: %w", err)
	}
	if parent := existing(filepath.Dir(stateFolder)); parent != stateFolder {
		return refresh(parent)
	}
	return nil
}

// existing is the folder itself, or the nearest one above it that is there.
func existing(folder string) string {
	for {
		if st, err := os.Stat(folder); err == nil && st.IsDir() {
			return folder
		}
		folder = filepath.Dir(folder)
	}
}

// cover mounts a fresh folder over one that is there, whose content stays to be seen in it
// (open_tree(2), Linux 5.2: what is bound there must not have the fresh one in it).
func cover(folder string) error {
	old, err := unix.OpenTree(unix.AT_FDCWD, folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	below := filepath.Join(folder, hostsOwn)
	if err := os.Mkdir(below, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(old, "", unix.AT_FDCWD, below, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// own are the entries of /run that a hub has for itself, or not at all. Plugins keep what
// they have changed in cni, such as tuning, which on the host is root's. By dbus the plugin
// firewall would have the host's firewalld see to containers that the host does not know.
var own = []string{"ambi", "cni", "dbus", "netns", "xtables.lock", hostsOwn}

// refresh links what a folder covers into it, without what is the hub's own, and takes
// away links to what is gone.
func refresh(folder string) error {
	entries, err := os.ReadDir(filepath.Join(folder, hostsOwn))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(own, e.Name()) {
			continue
		}
		err := os.Symlink(filepath.Join(hostsOwn, e.Name()), filepath.Join(folder, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// StandIn is a network namespace that plugins are given in place of a container's. Its path
// is good inside the hub.
type StandIn struct{ Path string }

// StandInOf is the one of a name, which may be there or not.
func StandInOf(name string) StandIn { return StandIn{filepath.Join(standIns, name)} }

// MakeStandIn makes one that is not there yet. A file without a namespace on it was left by a
// process that was killed in the middle of making or removing it.
func (n *Namespace) MakeStandIn(s StandIn) (err error) {
	n.Do(func() {
		var f *os.File
		if f, err = os.OpenFile(s.Path, os.O_CREATE, 0o444); err != nil {
			return
		}
		there := isNamespace(f)
		f.Close()
		if there {
			return
		}
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", s.Path, "", unix.MS_BIND, "")
		}
		if err != nil {
			err = errors.Join(err, os.Remove(s.Path))
		}
		err = errors.Join(err, n.Enter()) // back
	})
	if err != nil {
		return fmt.Errorf("making a namespace in place of the container's: %w", err)
	}
	return nil
}

// isNamespace: a namespace's file is on a file system of its own (statfs(2)).
func isNamespace(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.NSFS_MAGIC
}

// InStandIn runs f on the thread inside, which is in the stand-in meanwhile. It is
// fs.ErrNotExist without one.
func (n *Namespace) InStandIn(s StandIn, f func() error) (err error) {
	n.Do(func() {
		var file *os.File
		if file, err = os.Open(s.Path); err != nil {
			return
		}
		defer file.Close()
		if err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err == nil {
			err = f()
		}
		err = errors.Join(err, n.Enter())
	})
	return err
}

// RemoveStandIn removes it. One that is not there is success.
func (n *Namespace) RemoveStandIn(s StandIn) (err error) {
	n.Do(func() {
		_ = unix.Unmount(s.Path, unix.MNT_DETACH)
		if err = os.Remove(s.Path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	})
	return err
}

// Start starts a program on the thread inside, in its namespaces.
func (n *Namespace) Start(start func() error) (err error) {
	n.Do(func() {
		if err = refresh(runFolder); err == nil {
			err = start()
		}
	})
	return err
}
