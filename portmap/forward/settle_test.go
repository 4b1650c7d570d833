package forward

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// left is a connection that leaves, between two ends of the test's.
type left struct{ client, service *os.File }

// leaves begins one that does not grow old.
func leaves(t *testing.T, w *worker, p *port) left {
	t.Helper()
	var ours [2]int32
	var theirs [2]*os.File
	for i := range ours {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		ours[i], theirs[i] = int32(fds[0]), os.NewFile(uintptr(fds[1]), "end")
		t.Cleanup(func() { theirs[i].Close() })
	}
	w.do(func(w *worker) {
		p.active.Add(1)
		p.users.Add(1)
		w.load.Add(1)
		w.fresh.Add(1)
		w.adopt(&conn{port: p, since: w.forwarder.clock() + time.Hour, fresh: true, sides: [2]side{{fd: ours[client]}, {fd: ours[service]}}})
	})
	return left{theirs[client], theirs[service]}
}

// carries says that what one end sends arrives at the other.
func (l left) carries(t *testing.T, size int) {
	t.Helper()
	for _, ends := range [][2]*os.File{{l.client, l.service}, {l.service, l.client}} {
		sent, got := bytes.Repeat([]byte("0123456789"), size/10), make([]byte, size/10*10)
		failed := make(chan error, 1)
		go func() { _, err := ends[0].Write(sent); failed <- err }()
		_, err := io.ReadFull(ends[1], got)
		require.NoError(t, err)
		require.NoError(t, <-failed)
		require.True(t, bytes.Equal(sent, got), "what arrives is what was sent")
	}
}

// TestConnectionsThatLeaveSettle: what is short is not handed on, and what goes on is shared
// among the workers, with nothing lost on the way.
func TestConnectionsThatLeaveSettle(t *testing.T) {
	f, err := New(Config{Namespace: host{}, MaxWorkers: 2, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer f.Close()
	first, err := f.workerAt(0)
	require.NoError(t, err)
	p := &port{}
	p.users.Store(1)
	all := []left{leaves(t, first, p), leaves(t, first, p), leaves(t, first, p)}
	fresh := func() (sum int32) {
		for _, w := range *f.workers.Load() {
			sum += w.fresh.Load()
		}
		return sum
	}
	// How much a worker finds at a time is the scheduler's.
	for end := time.Now().Add(time.Minute); fresh() > 1 && time.Now().Before(end); {
		for _, l := range all[:2] {
			l.carries(t, 4<<20)
		}
	}
	workers := *f.workers.Load()
	require.Len(t, workers, 2, "the second that goes on has a worker of its own")
	require.EqualValues(t, 2, workers[0].load.Load())
	require.EqualValues(t, 1, workers[1].load.Load())
	require.EqualValues(t, 1, workers[0].fresh.Load(), "one has done nothing yet")
	for _, l := range all {
		l.carries(t, 100_000)
		require.NoError(t, l.client.Close())
		_, err := l.service.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, l.service.Close())
	}
	require.Eventually(t, func() bool { return f.Connections() == 0 }, time.Minute, time.Millisecond)
	require.Zero(t, workers[0].fresh.Load())
	require.Zero(t, p.active.Load())
}

// TestShortConnectionsStay: nobody starts a worker for them.
func TestShortConnectionsStay(t *testing.T) {
	f, err := New(Config{Namespace: host{}, MaxWorkers: 2, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer f.Close()
	w, err := f.workerAt(0)
	require.NoError(t, err)
	p := &port{}
	p.users.Store(1)
	for range 20 {
		leaves(t, w, p)
	}
	require.EqualValues(t, 20, w.load.Load())
	require.Zero(t, w.weight())
	require.Len(t, *f.workers.Load(), 1)
}
