package supervisor

import (
	"net"
	"slices"
	"sync"
)

// waiting are the connections on which a request is still to come, in their order. Callers
// say what they want at once; one that does not, or says half of it, keeps a descriptor, and
// up to filesAtOnce more that came along. Beyond so many one of the process that has most of
// them has to go, so that who besets us is in his own way and not in that of a verb.
type waiting struct {
	mu    sync.Mutex
	room  sync.Cond // one is done
	conns []*waiter
}

type waiter struct {
	*net.UnixConn
	process int32
	goes    bool
}

const mostWaiting = 32

func newWaiting() *waiting {
	w := &waiting{}
	w.room.L = &w.mu
	return w
}

// add returns when there is room for one more.
func (w *waiting) add(conn *net.UnixConn, process int32) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.conns) >= mostWaiting {
		if one := w.besetter(); one != nil {
			one.goes = true
			// What it has said until now can be read, and has an answer if it was all. To close
			// the connection would throw that away.
			_ = one.CloseRead()
		}
		w.room.Wait()
	}
	one := &waiter{UnixConn: conn, process: process}
	w.conns = append(w.conns, one)
	return one
}

// besetter is the oldest connection of the process that has the most; nil when all go.
func (w *waiting) besetter() (oldest *waiter) {
	of := map[int32]int{}
	for _, one := range w.conns {
		if !one.goes {
			of[one.process]++
		}
	}
	for _, one := range w.conns {
		if !one.goes && (oldest == nil || of[one.process] > of[oldest.process]) {
			oldest = one
		}
	}
	return oldest
}

// done says that all is read, and returns whether it had to go.
func (w *waiting) done(one *waiter) (goes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = slices.DeleteFunc(w.conns, func(other *waiter) bool { return other == one })
	w.room.Signal()
	return one.goes
}
