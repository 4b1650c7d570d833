package forward

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// Forwarder forwards published ports to containers that are reached from one namespace. Its methods may be
// called from several goroutines at once.
type Forwarder struct {
	config  Config
	started time.Time
	budget  descriptorBudget
	pipes   pipePool
	routes  routes
	guests  guests
	flows   atomic.Int64 // of all workers

	spinning atomic.Bool // one worker at a time, see poller.wait

	mu     sync.Mutex // ports, order, udp, closed
	ports  map[conf.PortMapping]*port
	order  []*port // as added
	udp    int     // UDP ports added so far
	closed bool

	starting sync.Mutex // one worker at a time is started; guards stopped
	stopped  bool
	workers  atomic.Pointer[[]*worker]
}

// ErrClosed is what a closed Forwarder answers.
var ErrClosed = errors.New("the forwarder is closed")

// New makes a Forwarder without ports. It starts nothing until there are some.
func New(c Config) (*Forwarder, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	f := &Forwarder{config: c.withDefaults(), started: time.Now(), budget: newBudget(), ports: make(map[conf.PortMapping]*port)}
	f.pipes.most, f.pipes.budget = max(f.config.MaxPipes, 0), f.budget
	f.routes.init(c.Namespace)
	f.workers.Store(&[]*worker{})
	return f, nil
}

func (f *Forwarder) clock() time.Duration { return time.Since(f.started) }

// Add is AddTo for the target of the configuration.
func (f *Forwarder) Add(sockets []Socket) error { return f.AddTo(f.config.Target, sockets) }

// AddTo takes ownership of the sockets' files and starts forwarding to the target; with an
// error none is forwarded and all are closed. It may be called at any time.
func (f *Forwarder) AddTo(t Target, sockets []Socket) error {
	defer CloseSockets(sockets) // the forwarder works on descriptors of its own
	if err := t.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	if err := f.affordable(sockets); err != nil {
		return err
	}
	if err := f.startInside(len(sockets)); err != nil {
		return err
	}
	ports, err := f.prepare(t, sockets)
	if err != nil {
		return err
	}
	if err := f.open(ports); err != nil {
		return err
	}
	for _, p := range ports {
		f.ports[p.mapping] = p
		f.order = append(f.order, p)
	}
	return nil
}

// affordable says whether there are descriptors for the sockets and then for clients.
func (f *Forwarder) affordable(fresh []Socket) error {
	listening := len(fresh)
	for _, p := range f.order {
		listening += len(p.entrances)
	}
	if listening > f.budget.ports {
		return tooManyPorts(fresh[len(fresh)-1].Mapping)
	}
	return nil
}

// startInside starts all workers with the first port where threads can move into the
// container's namespace: later the process may have given up the rights to.
func (f *Forwarder) startInside(sockets int) error {
	if _, ok := f.config.Namespace.(Enterer); !ok || sockets == 0 {
		return nil
	}
	_, err := f.workerAt(f.config.MaxWorkers - 1)
	return err
}

// prepare makes the ports of the sockets, each with its workplace.
func (f *Forwarder) prepare(t Target, sockets []Socket) (ports []*port, err error) {
	fresh := make(map[conf.PortMapping]*port)
	for _, s := range sockets {
		if f.ports[s.Mapping] != nil {
			return nil, fmt.Errorf("port %s is forwarded already", s.Mapping)
		}
		p := fresh[s.Mapping]
		if p == nil {
			p = &port{mapping: s.Mapping, target: t, routes: &f.routes}
			if p.worker, err = f.workerFor(s.Mapping.Protocol); err != nil {
				return nil, err
			}
			fresh[s.Mapping] = p
			ports = append(ports, p)
		}
		p.sockets = append(p.sockets, s)
	}
	return ports, nil
}

// workerFor spreads UDP ports over the workers. TCP listeners are all with the
// first, which hands connections on.
func (f *Forwarder) workerFor(protocol conf.Protocol) (*worker, error) {
	if protocol != conf.UDP {
		return f.workerAt(0)
	}
	f.udp++
	return f.workerAt((f.udp - 1) % f.config.MaxWorkers)
}

// open opens every port or none.
func (f *Forwarder) open(ports []*port) error {
	for i, p := range ports {
		if err := p.open(f); err != nil {
			f.shut(ports[:i])
			return fmt.Errorf("port %s: %w", p.mapping, err)
		}
	}
	for w, ports := range byWorker(ports) {
		var errno unix.Errno
		w.do(func(w *worker) { errno = watchPorts(w, ports) })
		if errno != 0 {
			f.shut(ports)
			return fmt.Errorf("watching the listening sockets: %w", errno)
		}
	}
	return nil
}

func watchPorts(w *worker, ports []*port) unix.Errno {
	for _, p := range ports {
		for _, e := range p.entrances {
			if errno := e.serve(w); errno != 0 {
				return errno
			}
		}
	}
	return 0
}

// shut closes the listeners of ports, worker by worker.
func (f *Forwarder) shut(ports []*port) {
	for w, ports := range byWorker(ports) {
		w.do(func(w *worker) {
			for _, p := range ports {
				for _, e := range p.entrances {
					e.close(w)
				}
			}
		})
	}
	for _, p := range ports {
		p.release()
	}
}

// byWorker groups ports: a worker is asked once for all of its own, as each
// question waits for its turn.
func byWorker(ports []*port) map[*worker][]*port {
	groups := make(map[*worker][]*port)
	for _, p := range ports {
		groups[p.worker] = append(groups[p.worker], p)
	}
	return groups
}

// Remove stops forwarding a port. Its TCP connections go on until one of their
// ends closes them, and no other port is touched; its UDP flows end, since they
// answer through the socket that is closed here. A port that is not there is
// an error.
func (f *Forwarder) Remove(m conf.PortMapping) error { return f.remove(m, false) }

// Leave is Remove for a port that another forwarder has by the same sockets: those who have
// come are served by this one.
func (f *Forwarder) Leave(m conf.PortMapping) error { return f.remove(m, true) }

func (f *Forwarder) remove(m conf.PortMapping, goesOn bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.ports[m]
	if p == nil {
		return fmt.Errorf("port %s is not forwarded: %w", m, os.ErrNotExist)
	}
	p.goesOn = goesOn
	delete(f.ports, m)
	f.order = slices.DeleteFunc(f.order, func(other *port) bool { return other == p })
	f.shut([]*port{p})
	return nil
}

// WithSockets calls use with the descriptors of the port's sockets, in the order in which they
// were added, which are good meanwhile. A port that is not there is an error.
func (f *Forwarder) WithSockets(m conf.PortMapping, use func(fds ...int) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.ports[m]
	if p == nil {
		return fmt.Errorf("port %s is not forwarded: %w", m, os.ErrNotExist)
	}
	fds := make([]int, len(p.entrances))
	for i, e := range p.entrances {
		fds[i] = int(e.descriptor())
	}
	return use(fds...)
}

// Connections is how many there are.
func (f *Forwarder) Connections() (n int) {
	for _, w := range *f.workers.Load() {
		n += int(w.load.Load())
	}
	return n
}

// Stats reads the counters of every port, in the order they were added.
func (f *Forwarder) Stats() []PortStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats := make([]PortStats, len(f.order))
	for i, p := range f.order {
		stats[i] = p.read(p.mapping)
	}
	return stats
}

// Close ends every port and connection. All descriptors are closed, and rules and
// routes inside the namespace taken back, when it returns.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	f.shut(f.order)
	f.ports, f.order = nil, nil
	f.starting.Lock()
	f.stopped = true // no more workers
	f.starting.Unlock()
	for _, w := range *f.workers.Load() {
		w.stop()
	}
	f.pipes.release()
	return f.routes.close()
}

// workerAt starts workers up to the number wanted.
func (f *Forwarder) workerAt(i int) (*worker, error) {
	f.starting.Lock()
	defer f.starting.Unlock()
	for {
		workers := *f.workers.Load()
		if i < len(workers) {
			return workers[i], nil
		}
		if _, err := f.startOne(); err != nil {
			return nil, err
		}
	}
}

// startOne is called with the lock held.
func (f *Forwarder) startOne() (*worker, error) {
	if f.stopped {
		return nil, ErrClosed
	}
	w, err := startWorker(f)
	if err != nil {
		return nil, err
	}
	workers := append(slices.Clone(*f.workers.Load()), w)
	f.workers.Store(&workers)
	return w, nil
}

// least is the worker that a new connection goes to: the accepting one as long as it has no
// more than so many, or unless another has less to do. A worker more is started when all have connections.
func (f *Forwarder) least(accepting *worker, few int32) *worker {
	mine := accepting.weight()
	if mine <= few {
		return accepting
	}
	best, load := accepting, mine
	workers := *f.workers.Load()
	for _, w := range workers {
		if l := w.weight(); l < load {
			best, load = w, l
		}
	}
	if load > 0 && len(workers) < f.config.MaxWorkers {
		if w := f.oneMore(); w != nil {
			return w
		}
	}
	return best
}

// oneMore starts a worker, unless one is being started already: nobody waits here.
func (f *Forwarder) oneMore() *worker {
	if !f.starting.TryLock() {
		return nil
	}
	defer f.starting.Unlock()
	w, err := f.startOne()
	if err != nil {
		f.config.Logger.Warn("another worker cannot be started", "error", err)
		return nil
	}
	return w
}
