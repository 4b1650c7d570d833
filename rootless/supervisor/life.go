package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/keeper"
)

// supervisor is the life of the process.
type supervisor struct {
	hub     *hub
	command driver.Command
	files   driver.Files
	log     *slog.Logger
	since   time.Time
	owner   int // who called ADD, as a uid of our user namespace
	control *net.UnixListener
	twin    *twin
	signals chan os.Signal
	stopped chan struct{}
	// managers are those of systemd that may be asked for a scope.
	managers []string
	started  chan struct{} // closed when the first driver is there, or has failed
	once     sync.Once

	// work is held while a driver is made ready, and by leave, which must not take
	// routes back that the other is putting in place.
	work sync.Mutex

	mu       sync.Mutex
	driver   driver.Process // nil while it is down
	newcomer driver.Process // started, not ready yet
	restarts int
	lastErr  string
	firstErr error // why there was no driver at first
	full     int   // process of the driver of which it was said that it has no file left

	replaced atomic.Bool    // another one has taken over, and this process comes to its end
	adopted  driver.Process // of the supervisor before; nil: it has left none

	// changing is held by what changes what there is, and by the making of a replacement.
	changing sync.RWMutex
	gaveUp   bool          // what only the start has rights for is done, by work
	ofHost   string        // what the driver has of the host, by work
	reach    *driver.Reach // where the host got, followHost's; nil: not known yet
	hurry    chan struct{} // has something in it when the next try need not wait
}

// Main is the main function of the supervisor process; it returns the exit status.
func Main() int {
	if len(os.Args) > 2 && os.Args[2] == driverRole {
		return driver.HelperMain(os.Args[3:])
	}
	first := onlyFirstThread()
	collectLate()
	// rootlessport's workers, one a processor, wait in epoll without telling the
	// scheduler; one more has the control socket answered meanwhile.
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	_ = os.WriteFile("/proc/self/comm", []byte("ambi"), 0) // not "exe", for ps and pgrep
	// No big pages, 2 MiB, in which a flow uses but a few small ones: for the driver as well.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	_ = confine.Ordinary() // its limit of a core's size can be lowered, and / is there
	KeepDescriptors()      // or the driver would hold the published ports, too
	if startedByKeeper() {
		return again()
	}
	ready := os.NewFile(readyFD, "ready pipe")
	config, err := readConfig()
	if err != nil {
		return tellFailure(ready, err)
	}
	log := newLogger(newLogFile(os.Stderr), config.LogLevel).With(config.Hub.about()...)
	s, err := prepare(config, log)
	if err != nil {
		log.Error("start", "error", err)
		return tellFailure(ready, err)
	}
	if first {
		firstThread = make(chan func())
	}
	go serveControl(s.control, s.owner, s.log, s.answer)
	// Before there is a driver, so that the first member is connected meanwhile.
	if tell(ready, Ready{Done: true}, 0) != 0 {
		log.Warn("nobody waits for this supervisor any more, leaving")
		s.leaveForGood()
		return 1
	}
	s.live()
	return 0
}

// onlyFirstThread keeps the main goroutine on the process's first thread, if it is there.
func onlyFirstThread() bool {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		return true
	}
	runtime.UnlockOSThread()
	return false
}

// live is the life of a supervisor that answers.
func (s *supervisor) live() {
	go s.firstDriver()
	go s.followHost()
	go s.leaveUnit()
	over := make(chan struct{})
	go func() { s.run(); close(over) }()
	for {
		select {
		case f := <-firstThread:
			f()
		case <-over:
			return
		}
	}
}

// prepare makes the hub, in which there is no driver yet.
func prepare(config *Config, log *slog.Logger) (*supervisor, error) {
	h, err := newHubWithRights(config, log)
	if err != nil {
		return nil, err
	}
	if err := h.prepare(&config.Driver); err != nil {
		return nil, err
	}
	if err := h.confine(&config.Driver); err != nil {
		return nil, err
	}
	t := newTwin(config.Hub.Title(), log)
	return newSupervisor(h, config, t, os.NewFile(aliveFD, "alive lock"), os.NewFile(controlFD, "control socket"))
}

func newHubWithRights(config *Config, log *slog.Logger) (*hub, error) {
	if !record.HaveCapability(unix.CAP_NET_ADMIN) || !record.HaveCapability(unix.CAP_SYS_ADMIN) {
		return nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "the hub has no rights in the user namespace that it made"),
			"allow user namespaces to ordinary users (with AppArmor: sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
	}
	h, err := newHub(config.Hub, log)
	if err == nil {
		h.required = config.Hardening == conf.HardeningRequire
	}
	return h, err
}

// firstDriver starts the driver. One that fails is tried again like one that died:
// a member that comes later may have it.
func (s *supervisor) firstDriver() {
	s.work.Lock()
	process, err := s.adopted, error(nil)
	if process == nil {
		s.hub.awaitNoDriver()
		process, err = s.startDriver()
	}
	if err == nil {
		err = s.useDriver(process)
	}
	if err == nil {
		s.republish()
	}
	s.work.Unlock()
	if err != nil {
		s.log.Error("start", "error", err)
		s.mu.Lock()
		s.firstErr, s.lastErr = err, err.Error()
		s.mu.Unlock()
	}
	close(s.started)
	s.twin.begin()
	collectEarly()
	pace := &keeper.Pace{}
	if err != nil {
		if !s.restartDriver(pace.Failed(), pace) {
			return
		}
	}
	s.keepDriver(pace)
}

// await waits for the first driver. Its error is that of this one, while there is no other.
func (s *supervisor) await() error {
	select {
	case <-s.started:
	case <-s.stopped:
		return errLeaving
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver == nil {
		return s.firstErr
	}
	return nil
}

// collectLate is for the time until ADD has returned.
func collectLate() {
	const much = 64 << 20 // bytes
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(much)
}

// collectEarly: an idle supervisor is memory times containers.
func collectEarly() {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(math.MaxInt64)
}

// KeepDescriptors has no descriptor inherited by the next program but 0 to 2 and
// those it is given: not one that our own caller left open by mistake, whose other
// end would wait for the end of a process that lives for months.
func KeepDescriptors() {
	const first = 3
	_ = unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11; before it, callers have to be tidy
}

func newSupervisor(h *hub, config *Config, t *twin, alive, listener *os.File) (*supervisor, error) {
	// Again, so that SO_PEERCRED of a caller shows this process and not the one that
	// bound the name.
	if err := withFDs([]*os.File{listener}, nil, func(fds ...int) error { return unix.Listen(fds[0], backlog) }); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.FileListener(listener)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	listener.Close()
	control := l.(*net.UnixListener)
	control.SetUnlinkOnClose(false)
	file, err := alive.Stat()
	if err != nil {
		return nil, fmt.Errorf("lock of the supervisor: %w", err)
	}
	s := &supervisor{
		hub: h, command: config.Driver, log: h.log, since: time.Now(), owner: int(file.Sys().(*syscall.Stat_t).Uid), twin: t, managers: config.Managers,
		files: driver.Files{
			Netns: h.inside.File(), Alive: alive, Helper: []string{"ambi", Role, driverRole}, Most: affordable(mostFiles(config.Hub)),
		},
		control: control, signals: make(chan os.Signal, 1), stopped: make(chan struct{}), started: make(chan struct{}), hurry: make(chan struct{}, 1),
	}
	h.twin = t
	h.members.alive = file
	if err := s.entrust(config); err != nil {
		return nil, err
	}
	// From the start, so that a signal in the middle of it is kept for after it.
	signal.Notify(s.signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	return s, nil
}

// startDriver starts one with what the host has at the moment.
func (s *supervisor) startDriver() (driver.Process, error) {
	s.ofHost = s.command.OfHost()
	return s.command.Start(s.files, s.log)
}

// useDriver waits for a driver that was started and has the hub use it. With the first one rights
// are given up, without which there is no network.
func (s *supervisor) useDriver(process driver.Process) error {
	if process != s.adopted {
		s.setDriver(nil, process)
	}
	err := process.AwaitReady()
	if err == nil {
		err = s.hub.configure()
	}
	if err == nil && !s.gaveUp {
		err = s.hub.giveUpRights(&s.command)
		s.gaveUp = err == nil
		time.AfterFunc(trimAfter, s.boundThreads)
	}
	if err != nil {
		s.setDriver(nil, nil)
		s.disown()
		process.Stop()
		s.hub.withoutDriver()
		return err
	}
	s.setDriver(process, nil)
	s.entrustDriver(process)
	return nil
}

func (s *supervisor) setDriver(process, newcomer driver.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.driver, s.newcomer = process, newcomer
}

// The pace of the watch over the namespace, and of starting a keeper.
const (
	watchInterval = time.Second
	trimAfter     = 200 * time.Millisecond
	firstBackOff  = 50 * time.Millisecond
	longestPause  = 10 * time.Second
)

// run is the rest of the supervisor's life.
func (s *supervisor) run() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	// Give memory back, and not before ADD has returned: it would take ADD's time.
	trim := time.AfterFunc(trimAfter, giveMemoryBack)
	defer trim.Stop()
	for {
		select {
		case sig := <-s.signals:
			if s.replaced.Load() {
				os.Exit(0)
			}
			s.log.Info("leaving", "signal", sig)
			s.leaveForGood()
			return
		case <-s.stopped:
			s.log.Info("leaving", "reason", "asked to by the control socket")
			s.leaveForGood()
			return
		case <-tick.C:
			if s.replaced.Load() {
				continue
			}
			if s.deserted() {
				s.log.Info("leaving", "reason", "nobody is left")
				s.leaveForGood()
				return
			}
			s.watchFiles()
		}
	}
}

// deserted: nobody is left, and no replacement is being made, which looks by itself.
func (s *supervisor) deserted() bool {
	if !s.changing.TryRLock() {
		return false
	}
	defer s.changing.RUnlock()
	return s.hub.gone()
}

// watchFiles says once of each driver that it has as many files open as it may.
func (s *supervisor) watchFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver == nil || s.full == s.driver.PID() || openFiles(s.driver.PID()) < int(s.files.Most) {
		return
	}
	s.full = s.driver.PID()
	s.log.Warn("the driver has as many flows as it may, more are refused", "files", s.files.Most)
}

// boundThreads is the rest of giving up rights, when ADD has returned.
func (s *supervisor) boundThreads() {
	s.work.Lock()
	defer s.work.Unlock()
	s.hub.boundThreads()
}

// keepDriver restarts a driver that died, with the same addresses.
func (s *supervisor) keepDriver(pace *keeper.Pace) {
	for {
		s.mu.Lock()
		process := s.driver
		s.mu.Unlock()
		<-process.Ended()
		if s.leaving() || s.replaced.Load() {
			return
		}
		s.driverDied(process)
		if !s.restartDriver(pace.Died(), pace) {
			return
		}
	}
}

func (s *supervisor) driverDied(process driver.Process) {
	process.Dismiss()
	s.disown()
	s.mu.Lock()
	s.driver = nil
	s.restarts++
	s.lastErr = process.Ending()
	s.log.Warn("the driver died, restarting it", "error", s.lastErr)
	s.mu.Unlock()
	if process.Survivor() == nil {
		s.hub.withoutDriver() // it would read before the way to the host's loopback is closed
		return
	}
	s.letWait()
}

// letWait is for a driver that has died and whose interface stays: what is sent waits for its gateway.
func (s *supervisor) letWait() {
	if err := s.hub.inside.ForgetGateway(); err != nil {
		s.log.Warn("having packets wait for the next driver", "error", err)
	}
}

// restartDriver tries until it succeeds, or until the supervisor leaves.
func (s *supervisor) restartDriver(pause time.Duration, pace *keeper.Pace) bool {
	for {
		select {
		case <-time.After(pause):
		case <-s.hurry:
		}
		if s.leaving() {
			return false
		}
		err := s.anotherDriver()
		if err == nil {
			s.log.Info("the driver is back")
			return true
		}
		if errors.Is(err, errLeaving) {
			return false
		}
		pause = pace.Failed()
		s.log.Error("restarting the driver", "error", err, "next try in", pause)
		s.mu.Lock()
		s.lastErr = err.Error()
		s.mu.Unlock()
	}
}

// anotherDriver is the whole of one restart.
func (s *supervisor) anotherDriver() error {
	s.work.Lock()
	defer s.work.Unlock()
	if s.leaving() {
		return errLeaving
	}
	process, err := s.startDriver()
	if err != nil {
		return err
	}
	if err := s.useDriver(process); err != nil {
		return err
	}
	s.republish()
	return nil
}

// republish has a driver publish what one before it did. Somebody may have taken a port
// meanwhile: the container keeps the rest of its network, and CHECK names the port.
func (s *supervisor) republish() {
	if err := s.hub.restored(); err != nil {
		s.log.Error("publishing the ports again", "error", err)
	}
}

var errLeaving = errors.New("the supervisor is leaving")

func (s *supervisor) leaving() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

func (s *supervisor) stop() { s.once.Do(func() { close(s.stopped) }) }

// leave takes down everything that this process started. The driver takes longest
// to go, so it is told first. The namespace goes with this process.
func (s *supervisor) leave() {
	s.stop()
	s.twin.end() // first: it would have the hub live on
	s.control.Close()
	endAll(s.hub.before)
	process := s.dismissDriver()
	s.hub.leave()
	if process != nil {
		process.Stop()
	}
	s.hub.unlink()
}

// dismissDriver tells the driver to leave, waits for the end of a restart, and
// returns the driver that is there then, if any.
func (s *supervisor) dismissDriver() driver.Process {
	s.mu.Lock()
	for _, process := range []driver.Process{s.driver, s.newcomer} {
		if process != nil {
			process.Dismiss()
		}
	}
	s.mu.Unlock()
	s.work.Lock() // and keep it: nothing is restarted any more
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.driver
}

// leaveForGood is leave, and what DEL does after it when no DEL is at work.
func (s *supervisor) leaveForGood() {
	s.leave()
	s.hub.forget()
}

// answer serves one control request; it owns the files.
func (s *supervisor) answer(r request, files []*os.File) reply {
	defer s.begin(r.Op)()
	if s.replaced.Load() { // who waited for his turn asks again, and the one that answers now
		closeAll(files)
		return reply{hangUp: true}
	}
	s.hub.complete(&r)
	out, err := s.serve(r, files)
	if errors.Is(err, errReplaced) {
		return reply{hangUp: true}
	}
	if err != nil {
		return reply{Error: asCNI(err)}
	}
	out.Status = &Status{PID: os.Getpid(), Leaving: out.leaving}
	if r.Op == opStatus {
		out.Status = s.status(r) // which has every port in it
	}
	return out
}

// begin waits until no replacement is being made of this supervisor, which goes on with all that is asked
// for before it. It returns what is to be done when the request is.
func (s *supervisor) begin(op string) (end func()) {
	switch op {
	case opAddPort, opRemovePort, opOpen, opLeave, opUnlink, opNames, opStandIn:
		s.changing.RLock()
		return s.changing.RUnlock
	case opVerb: // for which a replacement does not wait
		s.changing.RLock()
		defer s.changing.RUnlock()
		s.hub.verbs.Add(1)
		return func() { s.hub.verbs.Add(-1) }
	}
	return func() {}
}

func (s *supervisor) serve(r request, files []*os.File) (reply, error) {
	switch r.Op {
	case opAddPort, opRemovePort, opOpen, opLeave, opUnlink, opNames, opStandIn, opVerb:
		out, err := s.hub.serve(r, files)
		if r.Op == opLeave && err == nil {
			s.forgetWayOut(r.Addresses)
		}
		return out, err
	}
	defer closeAll(files)
	switch r.Op {
	case opStatus:
		return reply{}, nil
	case opCheck:
		return reply{}, s.check(r)
	case opAwait:
		return reply{}, s.await()
	case opStop:
		s.stop()
		return reply{}, nil
	case opReplace:
		leaving, err := s.replace(r, files)
		return reply{leaving: leaving}, err
	}
	return reply{}, conf.Errorf(types.ErrDecodingFailure, "control request %q is not known", r.Op)
}

// check is CHECK from the inside: the driver and all that is the hub's.
func (s *supervisor) check(r request) error {
	var problems []string
	s.mu.Lock()
	if s.driver == nil {
		problems = append(problems, s.command.Driver+" is down and being restarted: "+s.whyDown())
	}
	s.mu.Unlock()
	for _, err := range s.hub.check(r) {
		if err != nil {
			problems = append(problems, strings.ReplaceAll(err.Error(), "\n", "; ")) // of errors.Join
		}
	}
	if len(problems) == 0 {
		return nil
	}
	who := s.hub.String()
	if r.Member != nil {
		who = r.Member.String()
	}
	return conf.Errorf(conf.ErrNetwork, "attachment %s: %s", who, strings.Join(problems, "; "))
}

// whyDown is why there is no driver. Without an error one has just been started: by a supervisor
// that has found none, since the one of before has ended together with its supervisor.
func (s *supervisor) whyDown() string {
	if s.lastErr == "" {
		return "it was started with its supervisor and is not ready yet"
	}
	return s.lastErr
}

func (s *supervisor) status(r request) *Status {
	keeper := s.twin.process() // may wait for one that is mute
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Status{PID: os.Getpid(), Keeper: keeper, Since: s.since, Driver: DriverStatus{Name: s.command.Driver, Restarts: s.restarts, Error: s.lastErr}}
	if s.driver == nil {
		st.Driver.Error = s.whyDown()
	} else {
		st.Driver.PID = s.driver.PID()
		if st.Driver.OpenFiles = openFiles(st.Driver.PID); st.Driver.OpenFiles > 0 {
			st.Driver.MostFiles = int(s.files.Most)
		}
	}
	s.hub.status(r, s.driver, st)
	return st
}
