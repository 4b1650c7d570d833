package supervisor

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/rootless/keeper"
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

// A keeper that ends at once is seen to, and not waited for as one that does not answer.
func TestKeeperEndsAtOnce(t *testing.T) {
	t.Parallel()
	twin := newTwin("test", slog.New(slog.DiscardHandler))
	twin.items["config"] = held{value: []byte("{}")}
	err := twin.start("/bin/false")
	twin.kill()
	twin.forget()
	require.True(t, keeper.Ended(err), "%v", err)
}
