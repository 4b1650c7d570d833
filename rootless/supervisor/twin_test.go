package supervisor

import (
	"errors"
	"log/slog"
	"os"
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

// A driver that dies while a keeper is told what to hold is no reason to end that one, nor is a port
// that could not be forwarded.
func TestKeeperOfWhatHasGone(t *testing.T) {
	t.Parallel()
	ours, theirs, err := keeper.Pair()
	require.NoError(t, err)
	defer unix.Close(theirs)
	got := map[string]int{}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			m, err := keeper.Receive(theirs)
			if errors.Is(err, unix.EAGAIN) {
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				return
			}
			got[m.Verb+" "+m.Key] = len(m.Files)
			keeper.CloseFiles(m.Files)
			if m.Verb != keeper.Hello {
				_ = keeper.Send(theirs, &keeper.Message{Verb: keeper.Done, Key: m.Key})
			}
			if m.Verb == keeper.All {
				return
			}
		}
	}()
	twin := newTwin("test", slog.New(slog.DiscardHandler))
	twin.pair = ours
	defer twin.forget()
	open, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer open.Close()
	closed, err := os.Open("/dev/null")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	twin.items = map[string]held{
		keyAlive:         {files: withFiles(open)},
		keyDriver:        {files: withFiles(open, closed)},
		keyPort + "8080": {value: []byte("{}"), files: func(func(...int) error) error { return os.ErrNotExist }},
	}
	require.NoError(t, twin.introduce())
	<-over
	require.Equal(t, map[string]int{"hello ": 1, "keep " + keyAlive: 1, "keep " + keyPort + "8080": 0, "all ": 0}, got)
	twin.items = map[string]held{keyAlive: {files: withFiles(closed)}}
	require.ErrorIs(t, twin.introduce(), os.ErrClosed, "without the lock it is no keeper")
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
