package rootless

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/netns"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// The descriptors that a supervisor is started with, beside standard error, which
// is BASE.log, for appending.
const (
	configFD  = 3 + iota // pipe, supervisorConfig as JSON
	readyFD              // pipe, readyMessage as JSON
	netnsFD              // the container's network namespace
	aliveFD              // BASE.alive, locked
	controlFD            // control socket, listening
	ownerFD              // the user namespace that nsenter joins, when it does
	socketFD             // the first of the published ports' sockets
)

// driverRole is the second argument of what is not a supervisor but the driver's helper
// (driver.HelperMain).
const driverRole = "tap"

// supervisorConfig is all a supervisor knows.
type supervisorConfig struct {
	Key      conf.Key           `json:"key"`
	StateDir string             `json:"stateDir"`
	Netns    record.Netns       `json:"netns"`
	Plan     plan.Interface     `json:"plan"`
	Driver   driver.Command     `json:"driver"`
	SourceIP conf.SourceIP      `json:"sourceIP"`
	LogLevel string             `json:"logLevel"`
	Joined   bool               `json:"joined,omitempty"` // ownerFD is open
	Sockets  []socketInfo       `json:"sockets,omitempty"`
	Ports    []conf.PortMapping `json:"ports,omitempty"` // that the driver publishes
	// CleanOnly: take away what a killed supervisor left inside, and leave.
	CleanOnly bool `json:"cleanOnly,omitempty"`
}

// socketInfo describes an inherited socket; they come in this order from socketFD.
type socketInfo struct {
	Mapping conf.PortMapping `json:"mapping"`
	Family  int              `json:"family"`
}

// readyMessage ends the start of a supervisor, well or not.
type readyMessage struct {
	Plan       *plan.Interface `json:"plan,omitempty"` // as it was carried out
	Error      *types.Error    `json:"error,omitempty"`
	LostRights bool            `json:"lostRights,omitempty"` // exec took the capabilities: start again as uid 0
}

// supervisor is the one long-lived process of a rootless attachment.
type supervisor struct {
	config  supervisorConfig
	log     *slog.Logger
	since   time.Time
	owner   int // who called ADD, as a uid of our user namespace
	control *net.UnixListener
	files   driver.Files
	watch   watch
	inside  *netns.Namespace
	ports   publisher
	signals chan os.Signal
	stopped chan struct{}
	once    sync.Once

	// work is held while a driver is made ready, and by leave, which must not take
	// routes back that the other is putting in place.
	work sync.Mutex

	mu       sync.Mutex
	driver   driver.Process // nil while it is down
	newcomer driver.Process // started, not ready yet
	restarts int
	lastErr  string
}

// publisher publishes host ports; rootlessport does, and the driver itself may.
type publisher interface {
	add(m conf.PortMapping, sockets []forward.Socket) error
	remove(m conf.PortMapping) error
	restored() error // the driver came back
	check() error
	stats() []forward.PortStats
	close() error
}

// Supervise is the main function of the supervisor process; it returns the exit
// status.
func Supervise() int {
	if len(os.Args) > 2 && os.Args[2] == driverRole {
		return driver.HelperMain()
	}
	debug.SetGCPercent(-1) // until ADD has returned; settle starts the collector
	// rootlessport's workers, one a processor, wait in epoll without telling the
	// scheduler; one more has the control socket answered meanwhile.
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	_ = os.WriteFile("/proc/self/comm", []byte("ambi"), 0) // not "exe", for ps and pgrep
	forgetCaller()
	keepDescriptors() // or the driver would hold the published ports, too
	ready := os.NewFile(readyFD, "ready pipe")
	config, err := readConfig()
	if err != nil {
		return tellFailure(ready, err)
	}
	if !record.HaveCapability(unix.CAP_NET_ADMIN) || !record.HaveCapability(unix.CAP_SYS_ADMIN) {
		return tell(ready, readyMessage{LostRights: true}, 1)
	}
	if config.CleanOnly {
		return cleanOnly(ready, config)
	}
	s, err := newSupervisor(*config)
	if err != nil {
		return tellFailure(ready, err)
	}
	err = s.start()
	if err == nil {
		err = dropCapabilities(s.owner)
	}
	if err != nil {
		s.log.Error("start", "error", err)
		code := tellFailure(ready, err)
		s.leave()
		return code
	}
	if tell(ready, readyMessage{Plan: &s.config.Plan}, 0) != 0 {
		// ADD was killed before it could hear of us: nobody may ever call DEL.
		s.log.Warn("nobody waits for this supervisor any more, leaving")
		s.leaveForGood()
		return 1
	}
	s.settle()
	s.run()
	return 0
}

// forgetCaller leaves what is inherited without being asked for, for the driver as well.
func forgetCaller() {
	unix.Umask(0o077)
	unspare("/proc/self/oom_score_adj")
}

// unspare: an engine that the kernel shall spare (proc_pid_oom_score_adj(5)) does not speak
// for what its containers use. To be killed more readily than others may be meant.
func unspare(file string) {
	if b, err := os.ReadFile(file); err == nil && bytes.HasPrefix(b, []byte("-")) {
		_ = os.WriteFile(file, []byte("0"), 0)
	}
}

// readConfig reads the configuration and closes what is of no use after it.
func readConfig() (*supervisorConfig, error) {
	pipe := os.NewFile(configFD, "configuration pipe")
	defer pipe.Close()
	config, err := decodeConfig(pipe)
	if err == nil && config.Joined {
		unix.Close(ownerFD)
	}
	return config, err
}

func decodeConfig(from io.Reader) (*supervisorConfig, error) {
	var config supervisorConfig
	if err := json.NewDecoder(from).Decode(&config); err != nil {
		return nil, fmt.Errorf("reading the supervisor's configuration: %w", err)
	}
	return &config, nil
}

func tell(ready *os.File, m readyMessage, code int) int {
	defer ready.Close()
	if err := json.NewEncoder(ready).Encode(m); err != nil {
		return 1
	}
	return code
}

func tellFailure(ready *os.File, err error) int {
	var e *types.Error
	if !errors.As(err, &e) {
		e = conf.Errorf(conf.ErrNetwork, "%v", err)
	}
	return tell(ready, readyMessage{Error: e}, 1)
}

func newSupervisor(config supervisorConfig) (*supervisor, error) {
	log := newLogger(newLogFile(os.Stderr), config.LogLevel).With("attachment", config.Key)
	listener := os.NewFile(controlFD, "control socket")
	// Again, so that SO_PEERCRED of a caller shows this process and not the one that
	// bound the name.
	if err := unix.Listen(controlFD, 16); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.FileListener(listener)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	listener.Close()
	control := l.(*net.UnixListener)
	control.SetUnlinkOnClose(false)
	// Of a file in the state folder: the folder itself may be closed to a subordinate uid
	// that the user namespace does not map its owner to.
	var file unix.Stat_t
	if err := unix.Fstat(aliveFD, &file); err != nil {
		return nil, fmt.Errorf("lock of the supervisor: %w", err)
	}
	s := &supervisor{config: config, log: log, since: time.Now(), owner: int(file.Uid), control: control, signals: make(chan os.Signal, 1), stopped: make(chan struct{})}
	// From the start, so that a signal in the middle of it is kept for after it.
	signal.Notify(s.signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	s.files = driver.Files{
		Netns: os.NewFile(netnsFD, "network namespace"), Alive: os.NewFile(aliveFD, "alive lock"),
		Helper: []string{"ambi", Role, driverRole},
	}
	return s, nil
}

// start brings the interface and the ports up.
func (s *supervisor) start() error {
	var err error
	if s.watch, err = newWatch(s.config.Netns); err != nil {
		return err
	}
	if s.inside, err = netns.Open(s.files.Netns, s.config.Key, &s.config.Plan); err != nil {
		return err
	}
	if err := s.inside.Absent(s.config.Plan.IfName); err != nil {
		return err
	}
	if err := s.chooseAddresses(); err != nil {
		return err
	}
	process, err := s.config.Driver.Start(s.files, s.log)
	if err != nil {
		return err
	}
	meanwhile := s.whileDriverStarts()
	if err := s.useDriver(process); err != nil {
		return err
	}
	if meanwhile != nil {
		return meanwhile
	}
	return s.publishByDriver()
}

// whileDriverStarts does what needs no driver. A client that is this early finds
// no container yet, and ADD has not returned.
func (s *supervisor) whileDriverStarts() error {
	// A killed supervisor of this attachment may have left rules for other ports.
	if err := s.inside.RemoveAll(); err != nil {
		return fmt.Errorf("cleaning the routing rules inside the namespace: %w", err)
	}
	if s.config.Driver.APISocket != "" {
		return nil
	}
	r, err := newRootlessport(s)
	if err != nil {
		return err
	}
	s.ports = r
	return r.addAll(s.inherited())
}

// useDriver waits for a driver that was started and configures its interface.
func (s *supervisor) useDriver(process driver.Process) error {
	s.setDriver(nil, process)
	err := process.AwaitReady()
	if err == nil {
		err = s.inside.Configure()
	}
	if err != nil {
		s.setDriver(nil, nil)
		process.Stop()
		return err
	}
	s.setDriver(process, nil)
	return nil
}

func (s *supervisor) setDriver(process, newcomer driver.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.driver, s.newcomer = process, newcomer
}

func (s *supervisor) publishByDriver() error {
	publisher := s.config.Driver.Publisher(s.config.Plan.IPv4.First())
	if publisher == nil {
		return nil
	}
	s.ports = &byDriver{kind: driver.Of(s.config.Driver.Driver), driver: publisher}
	for _, m := range s.config.Ports {
		if err := s.ports.add(m, nil); err != nil {
			return err
		}
	}
	return nil
}

// inherited are the sockets of the published ports, bound by the one who started
// this process.
func (s *supervisor) inherited() []forward.Socket {
	sockets := make([]forward.Socket, len(s.config.Sockets))
	for i, info := range s.config.Sockets {
		sockets[i] = forward.Socket{Mapping: info.Mapping, Family: info.Family, File: os.NewFile(uintptr(socketFD+i), info.Mapping.String())}
	}
	return sockets
}

// settle gives back what only the start needed.
func (s *supervisor) settle() {
	s.config.Sockets = nil
	// An idle supervisor is memory times containers: collect early, keep little.
	debug.SetGCPercent(50)
}

// The pace of the watch over the namespace and of restarting the driver.
const (
	watchInterval = time.Second
	trimAfter     = 200 * time.Millisecond
	firstBackOff  = 50 * time.Millisecond
	longestPause  = 10 * time.Second
	stableAfter   = time.Minute // a driver that lived this long starts from firstBackOff again
)

// run is the rest of the supervisor's life.
func (s *supervisor) run() {
	go serveControl(s.control, s.owner, s.log, s.answer)
	go s.keepDriver()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	// Give memory back, and not before ADD has returned: it would take ADD's time.
	trim := time.AfterFunc(trimAfter, giveMemoryBack)
	defer trim.Stop()
	for {
		select {
		case sig := <-s.signals:
			s.log.Info("leaving", "signal", sig)
			s.leaveForGood()
			return
		case <-s.stopped:
			s.log.Info("leaving", "reason", "asked to by the control socket")
			s.leaveForGood()
			return
		case <-tick.C:
			if s.watch.gone() {
				s.log.Info("leaving", "reason", "the container's namespace is gone")
				s.leaveForGood()
				return
			}
		}
	}
}

// keepDriver restarts a driver that died, with the same addresses.
func (s *supervisor) keepDriver() {
	pause := firstBackOff
	for {
		s.mu.Lock()
		process := s.driver
		s.mu.Unlock()
		started := time.Now()
		<-process.Ended()
		if s.leaving() {
			return
		}
		if time.Since(started) > stableAfter {
			pause = firstBackOff
		}
		s.driverDied(process)
		if pause = s.restartDriver(pause); pause == 0 {
			return
		}
	}
}

func (s *supervisor) driverDied(process driver.Process) {
	process.Dismiss()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.driver = nil
	s.restarts++
	s.lastErr = process.Ending()
	s.log.Warn("the driver died, restarting it", "error", s.lastErr)
}

// restartDriver tries until it succeeds and returns the next pause, or 0 when the
// supervisor leaves.
func (s *supervisor) restartDriver(pause time.Duration) time.Duration {
	for {
		time.Sleep(pause)
		pause = min(2*pause, longestPause)
		if s.leaving() {
			return 0
		}
		err := s.anotherDriver()
		if err == nil {
			s.log.Info("the driver is back")
			return pause
		}
		if errors.Is(err, errLeaving) {
			return 0
		}
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
	process, err := s.config.Driver.Start(s.files, s.log)
	if err != nil {
		return err
	}
	if err := s.useDriver(process); err != nil {
		return err
	}
	if err := s.ports.restored(); err != nil {
		// Somebody has taken a port meanwhile. The container keeps the rest of its
		// network, and CHECK names the port.
		s.log.Error("publishing the ports again", "error", err)
	}
	return nil
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
// to go, so it is told first. It says whether nothing is left to do inside the
// container's namespace, and leaves word of it for DEL.
func (s *supervisor) leave() (clean bool) {
	s.stop()
	s.control.Close()
	process := s.dismissDriver()
	if s.inside != nil {
		s.inside.LeaveAtOnce()
	}
	if s.ports != nil {
		if err := s.ports.close(); err != nil {
			s.log.Warn("closing ports", "error", err)
		}
	}
	clean = true
	if s.inside != nil {
		err := s.inside.RemoveAll()
		if err == nil {
			err = sayClean(s.files.Alive)
		}
		if clean = err == nil; !clean {
			s.log.Warn("removing the routing rules inside the namespace, DEL will try again", "error", err)
		}
	}
	if process != nil {
		process.Stop()
	}
	return clean
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
	if !s.leave() {
		return // the record stays, for DEL or GC
	}
	if s.owner != os.Geteuid() {
		if err := syscall.Setuid(s.owner); err != nil { // of every thread
			s.log.Warn("becoming the owner of the record", "error", err)
		}
	}
	store, err := record.OpenExisting(s.config.StateDir)
	if err != nil {
		s.log.Warn("removing the record", "error", err)
		return
	}
	now, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	unlock, err := store.Lock(now, s.config.Key)
	if err != nil {
		return // DEL or GC holds it and does the rest
	}
	defer unlock()
	if err := store.Remove(s.config.Key); err != nil {
		s.log.Warn("removing the record", "error", err)
	}
}

// answer serves one control request; it owns the files.
func (s *supervisor) answer(r request, files []*os.File) reply {
	err := s.serve(r, files)
	if err == nil {
		return reply{Status: s.status()}
	}
	var e *types.Error
	if !errors.As(err, &e) {
		e = conf.Errorf(conf.ErrNetwork, "%v", err)
	}
	return reply{Error: e}
}

func (s *supervisor) serve(r request, files []*os.File) error {
	if r.Op != opAddPort {
		defer closeAll(files)
	}
	switch r.Op {
	case opStatus:
		return nil
	case opCheck:
		return s.check(r.MAC)
	case opStop:
		s.stop()
		return nil
	case opAddPort:
		return s.addPort(r, files)
	case opRemovePort:
		if r.Port == nil {
			return conf.Errorf(types.ErrDecodingFailure, "control request %s: no port", r.Op)
		}
		return s.ports.remove(*r.Port)
	}
	return conf.Errorf(types.ErrDecodingFailure, "control request %q is not known", r.Op)
}

func (s *supervisor) addPort(r request, files []*os.File) error {
	if r.Port == nil || len(r.Families) != len(files) {
		closeAll(files)
		return conf.Errorf(types.ErrDecodingFailure, "control request %s: no port, or not one family for each socket", r.Op)
	}
	sockets := make([]forward.Socket, len(files))
	for i, f := range files {
		sockets[i] = forward.Socket{Mapping: *r.Port, Family: r.Families[i], File: f}
	}
	return s.ports.add(*r.Port, sockets)
}

// chooseAddresses makes the plan final, and tells the driver which network it is now.
func (s *supervisor) chooseAddresses() error {
	if err := s.inside.ChooseAddresses(); err != nil {
		return err
	}
	s.config.Driver.Move(s.config.Plan.IPv4.Network())
	return nil
}

// check is CHECK from the inside: the driver, the interface and the ports.
func (s *supervisor) check(mac string) error {
	var problems []string
	s.mu.Lock()
	if s.driver == nil {
		problems = append(problems, s.config.Driver.Driver+" is down and being restarted: "+s.lastErr)
	}
	s.mu.Unlock()
	for _, err := range []error{s.inside.Check(mac), s.ports.check()} {
		if err != nil {
			problems = append(problems, strings.ReplaceAll(err.Error(), "\n", "; ")) // of errors.Join
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return conf.Errorf(conf.ErrNetwork, "attachment %s: %s", s.config.Key, strings.Join(problems, "; "))
}

func (s *supervisor) status() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Status{PID: os.Getpid(), Since: s.since, MAC: s.config.Plan.MAC, Ports: s.ports.stats()}
	st.Driver = DriverStatus{Restarts: s.restarts, Error: s.lastErr}
	if s.driver != nil {
		st.Driver.PID = s.driver.PID()
	}
	if link, err := s.inside.Link(); err == nil {
		st.Interface = StatsOf(link)
	}
	return st
}

// cleanOnly removes what a killed supervisor left inside the namespace.
func cleanOnly(ready *os.File, config *supervisorConfig) int {
	in, err := netns.Open(os.NewFile(netnsFD, "network namespace"), config.Key, &config.Plan)
	if err == nil {
		err = in.RemoveAll()
	}
	if err != nil {
		return tellFailure(ready, err)
	}
	return tell(ready, readyMessage{}, 0)
}
