package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
)

// newName is what a file is called until it is whole: libcni reads *.conf, *.conflist and
// *.json. One name will do, since the folder is locked; so a killed installer's is found
// and taken away by the next.
const newName = ".ambi-install"

// folder is one that we have locked, against other installers.
type folder struct{ *os.File }

// openFolder makes the folder if need be, and locks it. What a killed installer left goes.
func openFolder(ctx context.Context, path string) (folder, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return folder{}, ioError(err, "making the folder %s", path)
	}
	f, err := flock.Acquire(ctx, func() (*os.File, error) { return os.Open(path) })
	if err != nil {
		return folder{}, ioError(err, "locking the folder %s against other installers", path)
	}
	left := filepath.Join(path, newName)
	_, err = os.Lstat(left) // a folder that cannot be written to may be as it shall be
	if err == nil {
		err = os.Remove(left)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Close()
		return folder{}, ioError(err, "taking away what an installer left in %s", path)
	}
	return folder{f}, nil
}

const lockPatience = time.Minute // a copy of a binary to a slow disk

func (d folder) path(name string) string { return filepath.Join(d.Name(), name) }

// look is what a file is like that is to be replaced.
type look struct {
	mode     fs.FileMode
	uid, gid int // -1: ours
}

// write makes the new file, whole and on the disk.
func (d folder) write(content io.Reader, l look) error {
	f, err := os.OpenFile(d.path(newName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err == nil && l.uid >= 0 {
		err = f.Chown(l.uid, l.gid)
	}
	if err == nil {
		err = f.Chmod(l.mode) // not sooner: a program that is not whole is not to be run
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
	}
	return err
}

// put has a file of this content under this name.
func (d folder) put(name string, content io.Reader, l look) error {
	err := d.write(content, l)
	if err == nil {
		if err = os.Rename(d.path(newName), d.path(name)); err != nil {
			os.Remove(d.path(newName))
		}
	}
	if err != nil {
		return ioError(err, "writing %s", d.path(name))
	}
	return d.sync()
}

// swap puts a new content in the place of the old one, unless somebody else does so at the
// same time: then theirs is in place in the end, and swapped is false. The two files are
// exchanged in one step, so what was taken out tells whether it was the old one; if not,
// it is newer and goes back, in the same way.
func (d folder) swap(name string, old, content []byte, l look) (swapped bool, err error) {
	if err := d.write(bytes.NewReader(content), l); err != nil {
		return false, ioError(err, "writing %s", d.path(name))
	}
	defer os.Remove(d.path(newName))
	believed, placed := old, content
	for range mostTries {
		err := unix.Renameat2(unix.AT_FDCWD, d.path(newName), unix.AT_FDCWD, d.path(name), unix.RENAME_EXCHANGE)
		if errors.Is(err, unix.ENOENT) {
			return false, nil // it went meanwhile
		}
		if errors.Is(err, unix.EINVAL) {
			return d.replace(name, old)
		}
		if err != nil {
			return false, ioError(err, "writing %s", d.path(name))
		}
		out, err := os.ReadFile(d.path(newName))
		if err != nil {
			return false, ioError(err, "reading what was %s", d.path(name))
		}
		if bytes.Equal(out, believed) {
			return bytes.Equal(placed, content), d.sync()
		}
		believed, placed = placed, out
	}
	return false, nil
}

// replace is swap on a file system that cannot exchange files, such as NFS, and ZFS before
// 2.2: what somebody writes between the look and the rename is lost.
func (d folder) replace(name string, old []byte) (replaced bool, err error) {
	now, err := os.ReadFile(d.path(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(now, old) {
		return false, nil
	}
	if err == nil {
		err = os.Rename(d.path(newName), d.path(name))
	}
	if err != nil {
		return false, ioError(err, "writing %s", d.path(name))
	}
	return true, d.sync()
}

// sync has what was renamed outlast a loss of power.
func (d folder) sync() error {
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return ioError(err, "writing the folder %s to the disk", d.Name())
	}
	return nil
}

// remove takes a file away, if it is there.
func (d folder) remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioError(err, "taking away %s", d.path(name))
	}
	return d.sync()
}

// same says whether a file has this content and mode.
func same(path string, content io.Reader, size int64, mode fs.FileMode) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Mode().Perm() != mode || st.Size() != size {
		return false
	}
	a, b := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, errA := io.ReadFull(f, a)
		m, errB := io.ReadFull(content, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return isEnd(errA) && isEnd(errB)
		}
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// ioError is an error of a file, with what to do about it.
func ioError(err error, format string, args ...any) error {
	doing := fmt.Sprintf(format, args...)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%s: %v", doing, err), "make room on that disk and call it again; what was there is in place")
	case errors.Is(err, flock.ErrHeld):
		return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%s: %v", doing, err), "another ambi install is at work there: wait for it, or end it")
	}
	return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%s: %v", doing, err), "see that the folder is there and may be written to; --bin-dir and --conf-dir name others")
}
