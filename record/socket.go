package record

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SocketName is a name for the socket at path that is short whatever the folder is
// called: a socket name holds 108 bytes (unix(7)). It is good while the folder is open.
func SocketName(path string) (name string, folder *os.File, err error) {
	folder, err = os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(path)), folder, nil
}
