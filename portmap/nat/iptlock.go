package nat

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/flock"
)

// lockPath is beside iptables' own lock, which it holds for one program's run
// only. It is not in a state folder, because who has another one changes the same
// rules. The kernel lets go of a lock when its last holder ends, however that
// happens.
const lockPath = "/run/ambi-iptables.lock"

// locked runs f while no other process changes our chains, with a backend whose
// programs hold the lock too.
func (b iptRules) locked(ctx context.Context, f func(iptRules) error) error {
	file, err := takeLock(ctx)
	if err != nil {
		return fmt.Errorf("iptables lock: %w", err)
	}
	defer func() {
		// Whoever waits for this file notices that it is not there any more.
		if file.Name() == lockPath {
			_ = os.Remove(lockPath)
		}
		_ = file.Close()
	}()
	b.lock = file
	return f(b)
}

// takeLock opens and locks the file.
func takeLock(ctx context.Context) (*os.File, error) {
	file, err := flock.Acquire(ctx, openLock)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("waiting for another ambi that publishes ports (lock %s): %w", lockPath, err)
	}
	return file, err
}

// openLock falls back to the network namespace itself where /run is not ours: in
// a user namespace, whose network namespace nobody else can open.
func openLock() (*os.File, error) {
	file, err := os.OpenFile(lockPath, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
		return os.Open("/proc/thread-self/ns/net")
	}
	return file, err
}
