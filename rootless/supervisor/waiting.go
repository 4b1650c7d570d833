package supervisor

import (
	"net"
	"slices"
	"sync"
	"time"
)

// waiting are the connections on which a request is still to come, in their order. Callers
// say what they want at once; one that does not, or says half of it, keeps a descriptor, and
// up to filesAtOnce more that came along. Beyond so many the oldest has to go.
type waiting struct {
	mu    sync.Mutex
	conns []*net.UnixConn
}

const (
	mostWaiting = 32
	waitingTurn = 2 * time.Millisecond // in which those that have said all are read
)

// pace gives those that are read the time for it.
func (w *waiting) pace() {
	w.mu.Lock()
	full := len(w.conns) >= mostWaiting
	w.mu.Unlock()
	if full {
		time.Sleep(waitingTurn)
	}
}

// add is called by who is about to read, so that nobody has to go who has not been looked at.
func (w *waiting) add(conn *net.UnixConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.conns) >= mostWaiting {
		w.conns[0].Close()
		w.conns = w.conns[1:]
	}
	w.conns = append(w.conns, conn)
}

// done says that all is read. Without kept the connection had to go, and who asked will ask
// again.
func (w *waiting) done(conn *net.UnixConn) (kept bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept = slices.Contains(w.conns, conn)
	w.conns = slices.DeleteFunc(w.conns, func(other *net.UnixConn) bool { return other == conn })
	return kept
}
