package forward

import "time"

// This file is the worker's clock. Everything that waits for a time stands in a
// list whose members have the same time-out, and so is sorted by itself: only
// the heads have to be looked at.

// never is the patience of a worker that waits for events only.
const never time.Duration = -1

// patience is how long the worker may sleep.
func (w *worker) patience() time.Duration {
	if len(w.unready) > 0 {
		return 0
	}
	next := never
	sooner := func(deadline time.Duration) {
		left := max(deadline-w.now, 0)
		if next == never || left < next {
			next = left
		}
	}
	config := &w.forwarder.config
	if c := w.awaiting.head; c != nil {
		sooner(c.since + config.ConnectTimeout)
	}
	for s := range w.flows {
		if f := w.flows[s].head; f != nil {
			sooner(f.since + config.flowTimeout(stage(s)))
		}
	}
	for _, l := range w.paused {
		sooner(l.resumeAt)
	}
	if w.door.retryAt != 0 {
		sooner(w.door.retryAt)
	}
	if w.forwarder.pipes.wantsTrim() {
		sooner(w.now + pipeIdle)
	}
	if end, ok := w.forwarder.routes.idleEnd(); ok {
		sooner(end)
	}
	if w.out != nil {
		if left := w.out.patience(w.now); left != never {
			sooner(w.now + left)
		}
	}
	return next
}

// expire does what is due.
func (w *worker) expire() {
	config := &w.forwarder.config
	for c := w.awaiting.head; c != nil && c.since+config.ConnectTimeout <= w.now; c = w.awaiting.head {
		c.unanswered(w)
	}
	for s := range w.flows {
		w.expireFlows(&w.flows[s], config.flowTimeout(stage(s)))
	}
	w.door.expire(w)
	w.resumePaused()
	w.forwarder.pipes.trim(w.now)
	w.forwarder.routes.trim(w.now)
	if w.out != nil {
		w.out.sweep(w)
	}
}

func (w *worker) expireFlows(flows *list[*flow], timeout time.Duration) {
	for f := flows.head; f != nil && f.since+timeout <= w.now; f = flows.head {
		f.close(w)
	}
}

// linked is what an intrusive list needs of its members.
type linked[T any] interface {
	comparable
	links() *links[T]
}

// links is a member's place in a list.
type links[T any] struct{ prev, next T }

// list is a doubly linked list without allocations. A member is in one list at
// most.
type list[T linked[T]] struct{ head, tail T }

func (l *list[T]) push(member T) {
	var none T
	at := member.links()
	at.prev, at.next = l.tail, none
	if l.tail == none {
		l.head = member
	} else {
		l.tail.links().next = member
	}
	l.tail = member
}

func (l *list[T]) remove(member T) {
	var none T
	at := member.links()
	if at.prev == none {
		l.head = at.next
	} else {
		at.prev.links().next = at.next
	}
	if at.next == none {
		l.tail = at.prev
	} else {
		at.next.links().prev = at.prev
	}
	*at = links[T]{}
}
