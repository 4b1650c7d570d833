package plugin

import (
	"errors"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// coded gives an error that has no CNI code yet the one that fits: 5, "I/O
// failure" (specification section 5, "Error"), for what a file or folder caused,
// ErrNetwork for the rest. The library would make it its own 999. Errors that
// carry a code keep it.
func coded(err error) error {
	var with *types.Error
	if err == nil || errors.As(err, &with) {
		return err
	}
	var path *fs.PathError
	var link *os.LinkError
	// Somebody else's folder; what netlink(7) refuses is EPERM.
	foreign := errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EPERM)
	if errors.As(err, &path) || errors.As(err, &link) || foreign || errors.Is(err, unix.EROFS) {
		return mended(err)
	}
	return conf.Errorf(conf.ErrNetwork, "%v", err)
}

// mended is the error of a file with what to do about it, where the kernel's word for it says that.
func mended(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%v", err), "make room there, or have the quota raised, and call it again; DEL needs no room")
	case errors.Is(err, unix.EROFS):
		return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%v", err), "have that file system mounted to be written to (mount -o remount,rw), or set the key stateDir")
	case errors.Is(err, unix.EMFILE):
		return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%v", err), "raise the limit of open files of who calls it (ulimit -n)")
	case errors.Is(err, unix.ENFILE):
		return conf.Mendf(conf.Errorf(types.ErrIOFailure, "%v", err), "raise the sysctl fs.file-max")
	}
	return conf.Errorf(types.ErrIOFailure, "%v", err)
}
