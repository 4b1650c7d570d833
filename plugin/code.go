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
	if errors.As(err, &path) || errors.As(err, &link) || foreign {
		return conf.Errorf(types.ErrIOFailure, "%v", err)
	}
	return conf.Errorf(conf.ErrNetwork, "%v", err)
}
