package keeper

import "time"

// Pace is that of starting again what has died. A few deaths in a row cost no time, whatever
// killed it; what dies on and on is started about once a second, or less often.
type Pace struct {
	last  time.Time
	debt  time.Duration // grows with each death, and goes by
	pause time.Duration
}

const (
	firstPause   = 50 * time.Millisecond
	longestPause = 10 * time.Second
	credit       = 10 * time.Second
)

// Died is how long to wait after a death.
func (p *Pace) Died() time.Duration {
	now := time.Now()
	p.debt = max(p.debt-now.Sub(p.last), 0) + time.Second
	p.last = now
	if p.debt <= credit {
		p.pause = 0
		return 0
	}
	return p.Failed()
}

// Failed is how long to wait after a start that failed.
func (p *Pace) Failed() time.Duration {
	p.pause = min(max(2*p.pause, firstPause), longestPause)
	return p.pause
}
