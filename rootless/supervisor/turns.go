package supervisor

import (
	"sync"
	"time"
)

// This file bounds what callers have a supervisor do: what they are answered in is what its ports
// and names are served in, too. Those that are too many wait in the socket's queue.

const (
	requestsASecond  = 1000
	requestsInABurst = 1000
	briefMost        = 64   // requests that are answered at once
	lastingMost      = 512  // and of those whose answer takes long: plugins, and the wait for a driver
	lastingWaitMost  = 256  // that wait for their turn of these
	connectionsMost  = 1024 // in all, so that there is always room for brief ones
)

// pace is a bucket that fills with time (the generic cell rate algorithm of ITU-T I.371).
type pace struct{ next time.Time }

// wait is how long the next request has to wait.
func (p *pace) wait(now time.Time) time.Duration {
	const each = time.Second / requestsASecond
	if full := now.Add(-requestsInABurst * each); p.next.Before(full) {
		p.next = full
	}
	p.next = p.next.Add(each)
	return max(0, p.next.Sub(now))
}

// lasting are the requests whose answer takes long, by process.
type lasting struct {
	mu    sync.Mutex
	ended sync.Cond
	of    map[int32]int
	all   int
	wait  int
}

// A verdict says whether a lasting request may begin.
type verdict int

const (
	mayBegin verdict = iota
	tooManyOfOne
	tooMany
)

func newLasting() *lasting {
	l := &lasting{of: map[int32]int{}}
	l.ended.L = &l.mu
	return l
}

// begin waits for a place. One process has no more than there would be left for others, and
// is told so; a verb's has one. Process 0 are all those outside our PID namespace.
func (l *lasting) begin(process int32) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := func() int { return l.of[process] }
	if process == 0 {
		own = func() int { return 0 }
	}
	for own() >= lastingMost-l.all {
		switch {
		case own() > 0:
			return tooManyOfOne
		case l.wait >= lastingWaitMost:
			return tooMany
		}
		l.wait++
		l.ended.Wait()
		l.wait--
	}
	l.of[process]++
	l.all++
	return mayBegin
}

func (l *lasting) end(process int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[process]--; l.of[process] == 0 {
		delete(l.of, process)
	}
	l.ended.Broadcast()
}
