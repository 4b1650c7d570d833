package flock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/flock"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestTry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	one, other := open(t, path), open(t, path)
	require.NoError(t, flock.Try(one, flock.Shared))
	require.NoError(t, flock.Try(other, flock.Shared))
	require.ErrorIs(t, flock.Try(other, flock.Exclusive), flock.ErrHeld)
	require.NoError(t, flock.Unlock(one))
	require.NoError(t, flock.Try(other, flock.Exclusive))
}

// A wait ends with its context, and says why.
func TestLockEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	one, other := open(t, path), open(t, path)
	require.NoError(t, flock.Lock(t.Context(), one, flock.Exclusive))
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	err := flock.Lock(ctx, other, flock.Exclusive)
	require.ErrorIs(t, err, flock.ErrHeld)
	require.ErrorIs(t, err, why)
}

// A lock on a file that was removed meanwhile is none: nobody else would meet it.
func TestAcquireAfterARemoval(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder := open(t, path)
	require.NoError(t, flock.Try(holder, flock.Exclusive))
	got, opened := make(chan *os.File), make(chan bool, 2)
	go func() {
		f, err := flock.Acquire(t.Context(), func() (*os.File, error) {
			defer func() { opened <- true }()
			return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		})
		if err != nil {
			close(got)
			return
		}
		got <- f
	}()
	<-opened // the file that is about to go
	require.NoError(t, os.Remove(path))
	require.NoError(t, flock.Unlock(holder))
	f := <-got
	require.NotNil(t, f)
	defer f.Close()
	require.True(t, flock.Named(f))
	require.False(t, flock.Named(holder))
}
