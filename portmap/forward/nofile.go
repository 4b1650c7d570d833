package forward

import (
	"math"
	"runtime"

	"golang.org/x/sys/unix"
)

// descriptorBudget is what forwarding may take of this process's descriptors. The
// rest is for what else the process has to do, whatever its clients do.
type descriptorBudget struct {
	ports int   // how many listening sockets there may be, so that some are left for clients
	most  int32 // from this number on, no new client is served
	never int32 // from this number on, forwarding keeps nothing
}

// mostReserve is far more than a supervisor needs at once: some callers of its control
// socket with the sockets they send, and a driver that is being started.
const mostReserve = 64

// newBudget leaves mostReserve descriptors, or a quarter where there are few.
func newBudget() descriptorBudget {
	limit := unix.Rlimit{Cur: math.MaxInt32}
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // fails for a bad argument only
	cur := int32(min(limit.Cur, math.MaxInt32))
	reserve := min(mostReserve, cur/4)
	return descriptorBudget{ports: int(cur - 2*reserve), most: cur - reserve, never: cur - reserve/2}
}

// allows says whether a client may have a new descriptor. The kernel gives the lowest
// number that is free (open(2)), so all below it are in use: nobody has to count.
func (b descriptorBudget) allows(fd int32) bool { return fd < b.most }

// affordableFlows leaves a quarter of the descriptors that clients may have to
// connections: a flow lasts for minutes after its last datagram, and who makes up source
// addresses has as many flows as there may be.
func affordableFlows() int { return min(defaultMaxFlows, 3*int(newBudget().most)/4) }

// affordablePipes keeps the descriptors of pipes (two each) a small part of those
// that connections may need.
func affordablePipes() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return defaultMaxPipes
	}
	return int(min(defaultMaxPipes, limit.Cur/16))
}

func affordableWorkers() int {
	return min(runtime.NumCPU(), runtime.GOMAXPROCS(0), mostWorkers)
}
