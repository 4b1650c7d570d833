package bridge

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/flock"
)

// lockFile takes a lock on a file that it makes when need be, and waits for it until
// ctx ends. It is let go when the file is closed.
func lockFile(ctx context.Context, path string, how flock.How) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(ctx, f, how); err != nil {
		f.Close()
		return nil, fmt.Errorf("waiting for lock %s: %w", path, err)
	}
	return f, nil
}
