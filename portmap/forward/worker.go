package forward

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// worker is one goroutine around one epoll instance. Everything in it, and every
// handler it has, is touched by that goroutine only; others ask by post.
type worker struct {
	forwarder *Forwarder
	poller
	done chan struct{}

	inbox inbox
	load  atomic.Int32 // connections
	fresh atomic.Int32 // of them, those that do not count for the choice of a worker yet, see conn.settle

	now      time.Duration // since the forwarder's start, read once per round
	unready  []handler     // handlers that have more to do than one turn allows
	resuming []handler     // the same, while they are being worked through
	buffer   []byte        // for copying; nothing stays in it between two calls
	name     sockaddr      // the address that accept4(2) fills in
	sockets  socketMaker
	unused   [2]int32 // a socket made for a connection that did not come, by family
	diag     int32    // netlink socket inside, or noDescriptor
	noDiag   bool     // there cannot be one
	paced    bool     // new TCP sockets inside would send by a timer
	paused   []*listener
	door     door
	awaiting list[*conn] // connections that the service has not answered, oldest first
	flows    flowLists
	flowsOf  map[address]int // clients of published ports, and how many flows they have
	brief    atomic.Int64    // UDP flows that are no conversations: in a full table they end for others
	datagram *datagrams      // nil until the first UDP port
	out      *Outward        // whose packets this worker reads; nil
}

// inbox is what others ask of a worker.
type inbox struct {
	mu     sync.Mutex
	tasks  []func(*worker)
	closed bool
	event  int32 // eventfd(2) that wakes the worker
}

// bufferSize is one large read of a direction that is copied; see relay.go.
const bufferSize = 64 << 10

// eventBatch is how many events one round takes from the kernel.
const eventBatch = 128

func startWorker(f *Forwarder) (*worker, error) {
	w, err := newWorker(f)
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go w.start(started)
	if err := <-started; err != nil {
		w.shutDown()
		return nil, err
	}
	return w, nil
}

func newWorker(f *Forwarder) (*worker, error) {
	p, err := newPoller(&f.spinning)
	if err != nil {
		return nil, err
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(p.fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	w := &worker{
		forwarder: f, poller: p, done: make(chan struct{}), flowsOf: make(map[address]int),
		inbox: inbox{event: int32(event)}, buffer: make([]byte, bufferSize), unused: [2]int32{noDescriptor, noDescriptor}, diag: noDescriptor,
	}
	// Edge-triggered, so that nobody has to read the counter.
	if errno := w.watch(int32(event), w.seat(wakeUp{}), 0, unix.EPOLLIN|unix.EPOLLET); errno != 0 {
		w.shutDown()
		return nil, fmt.Errorf("watching the eventfd: %w", errno)
	}
	return w, nil
}

// wakeUp is the handler of the eventfd: being woken is all there is to it.
type wakeUp struct{}

func (wakeUp) ready(*worker, int, uint32) {}
func (wakeUp) resume(*worker)             {}
func (wakeUp) close(*worker)              {}

// start makes the goroutine a worker. Where threads may move into the container's
// namespace, it does, and stays locked to its thread until that ends with it.
func (w *worker) start(started chan<- error) {
	enterer, ok := w.forwarder.config.Namespace.(Enterer)
	if !ok {
		w.sockets = namespaceSockets{w.forwarder.config.Namespace}
		w.begin(started)
		return
	}
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not the process's first thread, whose namespace /proc/PID/ns/net shows. It
		// stays locked to this goroutine meanwhile.
		go w.start(started)
		<-w.done
		runtime.UnlockOSThread()
		return
	}
	if err := enterer.Enter(); err != nil {
		// The rights to move are gone, perhaps: the thread that lives inside is as
		// good, only slower.
		w.forwarder.config.Logger.Debug("a worker stays outside the container's network namespace", "error", err)
		runtime.UnlockOSThread()
		w.sockets = namespaceSockets{w.forwarder.config.Namespace}
	} else {
		w.sockets = ownSockets{}
		w.pace.ownThread()
	}
	w.begin(started)
}

func (w *worker) begin(started chan<- error) {
	w.probePacing()
	started <- nil
	w.run()
}

// run is the worker's loop. It ends when the inbox is closed.
func (w *worker) run() {
	defer close(w.done)
	events := make([]unix.EpollEvent, eventBatch)
	for {
		n := w.wait(events, w.patience())
		w.now = w.forwarder.clock()
		for i := range events[:n] {
			if h, tag := w.find(&events[i]); h != nil {
				h.ready(w, tag, events[i].Events)
			}
		}
		w.resumeAll()
		w.expire()
		if !w.runTasks() {
			w.shutDown()
			return
		}
	}
}

// weight is how much a worker has to do.
func (w *worker) weight() int32 { return w.load.Load() - w.fresh.Load() }

// again has a handler resumed in the next round, after the events that came in
// meanwhile: one busy connection does not starve the others.
func (w *worker) again(h handler) { w.unready = append(w.unready, h) }

func (w *worker) resumeAll() {
	w.resuming, w.unready = w.unready, w.resuming[:0]
	for i, h := range w.resuming {
		w.resuming[i] = nil
		h.resume(w)
	}
}

// post has the worker run task soon; false when it has stopped.
func (w *worker) post(task func(*worker)) bool {
	w.inbox.mu.Lock()
	defer w.inbox.mu.Unlock()
	if w.inbox.closed {
		return false
	}
	w.inbox.tasks = append(w.inbox.tasks, task)
	if len(w.inbox.tasks) == 1 {
		w.wake()
	}
	return true
}

func (w *worker) wake() {
	one := [8]byte{1}
	_, _ = unix.Write(int(w.inbox.event), one[:]) // full counts as woken
}

// do runs task in the worker and waits for it. A stopped worker has nothing left
// that a task could be about.
func (w *worker) do(task func(*worker)) {
	finished := make(chan struct{})
	if w.post(func(w *worker) { task(w); close(finished) }) {
		<-finished
	}
}

// stop ends the worker and waits until its descriptors are closed.
func (w *worker) stop() {
	w.inbox.mu.Lock()
	w.inbox.closed = true
	w.wake()
	w.inbox.mu.Unlock()
	<-w.done
}

// runTasks runs what others asked for; false when the worker shall stop.
func (w *worker) runTasks() bool {
	w.inbox.mu.Lock()
	tasks, closed := w.inbox.tasks, w.inbox.closed
	w.inbox.tasks = nil
	w.inbox.mu.Unlock()
	for _, task := range tasks {
		task(w)
	}
	return !closed
}

func (w *worker) shutDown() {
	for i := range w.seats {
		if h := w.seats[i].handler; h != nil {
			h.close(w)
		}
	}
	w.door.close(w)
	for _, fd := range append(w.unused[:], w.diag) {
		if fd != noDescriptor {
			sysClose(fd)
		}
	}
	unix.Close(int(w.inbox.event))
	unix.Close(w.fd)
}
