package supervisor

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// sparing is a log of which no message has more than so many lines: what a container, a client or
// a driver can have said again and again would drive all others out of a file
// whose size is bounded. What was left out is told with the next line of the message.
type sparing struct {
	slog.Handler
	said *said
}

const (
	linesAtOnce = 200         // of a message
	lineAgainIn = time.Second // one more
)

// said is how much of each message there was: as many messages as the program has, so that it
// stays small.
type said struct {
	mu  sync.Mutex
	of  map[string]*allowance
	now func() time.Time
}

// allowance is a bucket that fills again.
type allowance struct {
	left    int
	since   time.Time
	omitted int
}

func newSparing(h slog.Handler) sparing {
	return sparing{h, &said{of: map[string]*allowance{}, now: time.Now}}
}

func (s sparing) Handle(ctx context.Context, r slog.Record) error {
	omitted, ok := s.said.admit(r.Message)
	if !ok {
		return nil
	}
	if omitted > 0 {
		r.AddAttrs(slog.Int("omitted", omitted))
	}
	return s.Handler.Handle(ctx, r)
}

// admit says whether a line may be, and how many were not since the last one.
func (s *said) admit(message string) (omitted int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	a := s.of[message]
	if a == nil {
		a = &allowance{left: linesAtOnce, since: now}
		s.of[message] = a
	}
	if more := int(now.Sub(a.since) / lineAgainIn); more > 0 {
		a.left = min(linesAtOnce, a.left+more)
		a.since = now
	}
	if a.left == 0 {
		a.omitted++
		return 0, false
	}
	a.left--
	omitted, a.omitted = a.omitted, 0
	return omitted, true
}

func (s sparing) WithAttrs(attrs []slog.Attr) slog.Handler {
	return sparing{s.Handler.WithAttrs(attrs), s.said}
}

func (s sparing) WithGroup(name string) slog.Handler {
	return sparing{s.Handler.WithGroup(name), s.said}
}
