package flock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// How a lock is held.
type How int

// The two kinds of lock (flock(2)).
const (
	Shared    How = unix.LOCK_SH
	Exclusive How = unix.LOCK_EX
)

// ErrHeld says that somebody else has the lock.
var ErrHeld = errors.New("held by another process")

// Try takes the lock at once, or returns ErrHeld.
func Try(f *os.File, how How) error {
	for {
		err := unix.Flock(int(f.Fd()), int(how)|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrHeld
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// Lock waits for the lock until ctx ends; its error wraps ErrHeld and the context's cause
// then. flock(2) itself cannot be given a time, so a lock that is held is asked for again
// after a short while.
func Lock(ctx context.Context, f *os.File, how How) error {
	const first, most = 500 * time.Microsecond, 20 * time.Millisecond
	for pause := first; ; pause = min(2*pause, most) {
		err := Try(f, how)
		if !errors.Is(err, ErrHeld) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// Unlock lets go at once, also for those who inherited the descriptor.
func Unlock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }

// Acquire opens a file and locks it for itself, again and again if its name was given to
// another file, or to none, between the two by whoever held it before.
func Acquire(ctx context.Context, open func() (*os.File, error)) (*os.File, error) {
	for {
		f, err := open()
		if err != nil {
			return nil, err
		}
		if err := Lock(ctx, f, Exclusive); err != nil {
			f.Close()
			return nil, err
		}
		if Named(f) {
			return f, nil
		}
		f.Close()
	}
}

// Named says whether the file's name still leads to it.
func Named(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(f.Name())
	return err == nil && os.SameFile(opened, there)
}

// Folder makes the folder if it is missing, and waits for the lock on it until ctx ends. It
// may be removed by who has the lock alone: those who wait make another.
func Folder(ctx context.Context, path string, how How) (*os.File, error) {
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // whoever removed it was faster
		}
		if err != nil {
			return nil, err
		}
		if err := Lock(ctx, f, how); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock of %s: %w", path, err)
		}
		if Named(f) {
			return f, nil
		}
		f.Close()
	}
}
