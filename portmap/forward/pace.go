package forward

// pace tells round trips from bulk by what each round of a worker moves, and has the
// thread scheduled accordingly.
//
// In bulk the thread is a batch one (SCHED_BATCH, sched(7)): when it wakes, it does not
// push aside who woke it. A sender that goes on until it has filled its socket, and a
// service that goes on until it has emptied its own, mean more bytes for each wake-up.
type pace struct {
	moved     int // bytes since the last wait
	briefly   int // rounds of short messages, leastBriefly at most
	bulky     int // rounds of bulk, leastBulky at most
	mayChoose bool
	batch     bool
}

// A worker spins after leastBriefly rounds that moved mostBriefly bytes at most. Who
// moves more is not waiting for a round trip, and needs the processor.
const (
	mostBriefly  = 4 << 10
	leastBriefly = 4
	leastBulky   = 16
)

// ownThread says that the calling thread is this worker's for good. A policy that
// somebody has chosen for it stays.
func (p *pace) ownThread() { p.mayChoose = sysScheduler() == schedOther }

// brief says that nothing but short messages was moved for some rounds. Rounds that
// move nothing, but learn that a socket takes more, belong to either.
func (p *pace) brief() bool {
	switch {
	case p.moved > mostBriefly:
		p.briefly, p.bulky = 0, min(p.bulky+1, leastBulky)
	case p.moved > 0:
		p.briefly = min(p.briefly+1, leastBriefly)
	}
	p.moved = 0
	if p.briefly == leastBriefly {
		p.bulky = 0
	}
	p.choosePolicy()
	return p.briefly == leastBriefly
}

// choosePolicy changes the thread's policy where the pace has changed.
func (p *pace) choosePolicy() {
	switch {
	case !p.mayChoose:
	case p.bulky == leastBulky && !p.batch:
		p.batch = sysSetScheduler(schedBatch) == 0
		p.mayChoose = p.batch
	case p.bulky == 0 && p.batch:
		p.batch = sysSetScheduler(schedOther) != 0
		p.mayChoose = !p.batch
	}
}
