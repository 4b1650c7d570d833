package plugin

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"

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
	var errno syscall.Errno
	ofRecord := errors.Is(err, fs.ErrPermission) && !errors.As(err, &errno) // somebody else's folder
	if errors.As(err, &path) || errors.As(err, &link) || ofRecord {
		return conf.Errorf(types.ErrIOFailure, "%v", err)
	}
	return conf.Errorf(conf.ErrNetwork, "%v", err)
}
