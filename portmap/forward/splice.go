package forward

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pipe is what splice(2) needs between two sockets.
type pipe struct {
	read, write int32
	size        int32 // in bytes
}

func (p pipe) close() {
	sysClose(p.read)
	sysClose(p.write)
}

const (
	// pipeBudget is what all pipes may have room for, in bytes. After 64 MiB
	// (fs.pipe-user-pages-soft, pipe(7)) every further pipe of the same user, in
	// whatever program, is two pages small; this is a quarter of it.
	pipeBudget = 16 << 20
	// The first pipes are large, as fewer and larger moves wake the other programs
	// less often, and later ones smaller, so that there are some for all. The kernel
	// allows 1 MiB to everybody (fs.pipe-max-size).
	mostPipe  = 1 << 20
	leastPipe = 128 << 10
	// pipeIdle is how long unused pipes are kept, and how long to wait before asking
	// for one again after the kernel refused.
	pipeIdle = time.Second
)

// pipePool has the pipes of all workers. A direction takes one when it has data
// to splice and gives it back when it is empty again, so the pool is as large as
// the number of directions that stand still with data in a pipe.
type pipePool struct {
	most   int
	budget descriptorBudget

	mu        sync.Mutex
	idle      []pipe
	made      int // how many there are, idle ones too
	size      int // and how large they are together
	usedAt    time.Duration
	refusedAt time.Duration
	idling    atomic.Bool // len(idle) > 0, to be read without the lock
}

// take gives an empty pipe; false when the direction shall be copied instead.
func (p *pipePool) take(now time.Duration) (pipe, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.idle) - 1; last >= 0 {
		taken := p.idle[last]
		p.idle = p.idle[:last]
		p.idling.Store(last > 0)
		return taken, true
	}
	if p.made >= p.most || p.size >= pipeBudget || (p.refusedAt != 0 && now-p.refusedAt < pipeIdle) {
		return pipe{}, false
	}
	fresh, ok := newPipe(pipeSize(pipeBudget - p.size))
	if ok && !p.budget.allows(max(fresh.read, fresh.write)) {
		fresh.close()
		ok = false
	}
	if !ok {
		p.refusedAt = now
		return pipe{}, false
	}
	p.made++
	p.size += int(fresh.size)
	return fresh, true
}

// pipeSize is what a new pipe shall have of the budget that is left: a power of
// two, as the kernel would round it up to one.
func pipeSize(left int) int {
	size := mostPipe
	for size > leastPipe && size > left/8 {
		size /= 2
	}
	return size
}

// give puts an empty pipe back.
func (p *pipePool) give(back pipe, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, back)
	p.usedAt = now
	p.idling.Store(true)
}

// drop is for a pipe with data in it that nobody will read.
func (p *pipePool) drop(dirty pipe) {
	dirty.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made--
	p.size -= int(dirty.size)
}

// wantsTrim says that there are unused pipes.
func (p *pipePool) wantsTrim() bool { return p.idling.Load() }

// trim closes pipes that nobody has needed for a while, so that they do not count
// against the user's budget.
func (p *pipePool) trim(now time.Duration) {
	if !p.idling.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now-p.usedAt >= pipeIdle {
		p.closeIdle()
	}
}

// release closes unused pipes at once, for their descriptors.
func (p *pipePool) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeIdle()
}

func (p *pipePool) closeIdle() {
	for _, unused := range p.idle {
		unused.close()
		p.size -= int(unused.size)
	}
	p.made -= len(p.idle)
	p.idle = p.idle[:0]
	p.idling.Store(false)
}

// newPipe makes a pipe of about a size; false when the user's budget is spent.
func newPipe(size int) (pipe, bool) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, false
	}
	fresh := pipe{read: int32(fds[0]), write: int32(fds[1])}
	got, err := unix.FcntlInt(uintptr(fresh.write), unix.F_SETPIPE_SZ, size)
	if err != nil {
		fresh.close()
		return pipe{}, false
	}
	fresh.size = int32(got)
	return fresh, true
}
