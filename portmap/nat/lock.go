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
// only. It is not in a state folder, because who has another one changes the same
// rules. The kernel lets go of a lock when its last holder ends, however that
// happens.
const lockPath = "/run/ambi-iptables.lock"

// locked runs f while no other process changes our chains, with a backend whose
// programs hold the lock too.
func (b iptBackend) locked(ctx context.Context, f func(iptBackend) error) error {
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

// takeLock opens and locks the file, again and again if it was removed between
// the two by whoever held it before.
func takeLock(ctx context.Context) (*os.File, error) {
	for {
		file, err := openLock()
		if err != nil {
			return nil, err
		}
		if err := waitLock(ctx, file); err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("waiting for another ambi that publishes ports (lock %s): %w", file.Name(), err)
		}
		if isStill(file) {
			return file, nil
		}
		_ = file.Close()
	}
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

// isStill says whether the file's name leads to it.
func isStill(file *os.File) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(file.Name())
	return err == nil && os.SameFile(opened, there)
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
