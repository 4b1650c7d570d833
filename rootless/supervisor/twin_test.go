package supervisor

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestNobodyWaitsForAKeeper: where none can be started, for want of descriptors here, the
// supervisor does the rest of its work.
func TestNobodyWaitsForAKeeper(t *testing.T) {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: before.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }()
	w := newTwin("", slog.New(slog.DiscardHandler))
	defer w.end() // so that it starts none afterwards
	begun := make(chan struct{})
	go func() {
		w.begin()
		close(begun)
	}()
	select {
	case <-begun:
	case <-time.After(time.Minute):
		require.Fail(t, "it waits")
	}
}
