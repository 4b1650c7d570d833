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

// TestReplaceRollsBack: the keeper there is stays where another cannot take its place.
func TestReplaceRollsBack(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"/bin/false", "/etc/passwd", "/nowhere"} {
		twin := newTwin("test", slog.New(slog.DiscardHandler))
		ours, theirs, err := keeper.Pair()
		require.NoError(t, err)
		defer unix.Close(theirs)
		twin.pair, twin.pid = ours, 1
		require.Error(t, twin.replace(program))
		require.Equal(t, ours, twin.pair, program)
		require.Equal(t, 1, twin.process(), program)
		require.NoError(t, keeper.Send(twin.pair, &keeper.Message{Verb: keeper.All}), "it is spoken to")
		require.NotErrorIs(t, twin.replace(program), errLeaving, "nor is it the end")
		twin.forget()
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
