package nat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPath is beside iptables' own lock, which it holds for one program's run
// only. The kernel lets go of a lock when its holder ends, however that happens.
const lockPath = "/run/ambi-iptables.lock"

// locked runs f while no other process changes our chains.
func (iptBackend) locked(ctx context.Context, f func() error) error {
	file, err := openLock()
	if err != nil {
		return fmt.Errorf("iptables lock: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := waitLock(ctx, file); err != nil {
		return fmt.Errorf("waiting for another ambi that publishes ports (lock %s): %w", file.Name(), err)
	}
	return f()
}

// openLock falls back to the network namespace itself where /run is not ours: in
// a user namespace, whose network namespace nobody else can open.
func openLock() (*os.File, error) {
	file, err := os.OpenFile(lockPath, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
		return os.Open("/proc/thread-self/ns/net")
	}
	return file, err
}

func waitLock(ctx context.Context, file *os.File) error {
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}
