package keeper

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/memory"
)

// Role is the first argument of a process that is to be a keeper, and SupervisorRole of one
// that is to be a supervisor; what they are about follows.
const (
	Role           = "keeper"
	SupervisorRole = "supervisor"
)

// pairFD is the descriptor of the pair that a keeper is started with, and a supervisor by a
// keeper. Beside it there is standard error, the log.
const pairFD = 3

// ControlKey is the key of the item with the control socket, the one that a keeper does
// something with itself: while there is no supervisor it is the one who listens on it.
const ControlKey = "control"

// When the log says it in other words that a supervisor does not stay.
const (
	stableAfter = 10 * time.Second // one that lived so long has stayed
	sayAfter    = 5                // in a row
)

// backlog of the control socket.
const backlog = 1024

type keeper struct {
	title string
	pair  int // -1: none
	twin  int // pidfd of the supervisor; -1: none
	child int // its process, where that is our child
	items map[string]item
	waste int  // bytes of what was let go
	whole bool // a supervisor has said that we have all

	started time.Time // the supervisor
	pace    Pace
	failed  int  // that did not stay, one after the other
	over    bool // there is nothing to wait for any more
}

type item struct {
	value []byte
	files []int
}

// Main is the main function of the process; it returns the exit status.
func Main() int {
	debug.SetGCPercent(-1)
	_ = os.WriteFile("/proc/self/comm", []byte("ambi-keeper"), 0) // not "exe", for ps and pgrep
	unix.Umask(0o077)
	k := &keeper{pair: pairFD, twin: -1, items: map[string]item{}, started: time.Now()}
	if len(os.Args) > 2 {
		k.title = os.Args[2]
	}
	unix.CloseOnExec(pairFD)
	// What it starts has what is permitted, as uid 0 of the hub's user namespace, since that
	// is without new privileges.
	if err := confine.Rest(); err != nil {
		k.say("giving up capabilities", err)
	}
	if err := confine.Hide(); err != nil {
		k.say("keeping others from looking into it", err)
	}
	if err := k.hello(); err != nil {
		k.say("the supervisor is not there", err)
		return 1
	}
	memory.GiveBack()
	for {
		if err := k.wait(); err != nil {
			k.say("leaving", err)
			return 1
		}
		if k.over {
			return 0
		}
	}
}

// say writes a line as the supervisor's log has them.
func (k *keeper) say(what string, err error, more ...any) { k.log("WARN", what, err, more...) }

func (k *keeper) log(level, what string, err error, more ...any) {
	line := fmt.Sprintf("time=%s level=%s msg=%q keeper=%d", time.Now().Format("2006-01-02T15:04:05.000Z07:00"), level, what, os.Getpid())
	if err != nil {
		line += fmt.Sprintf(" error=%q", err.Error())
	}
	fmt.Fprintln(os.Stderr, line+fmt.Sprint(more...))
}

// hello tells the twin which process we are.
func (k *keeper) hello() error {
	own, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	return k.send(&Message{Verb: Hello, Value: []byte(Version), Files: []int{own}})
}

// wait does what comes next: what the twin says, or its end.
func (k *keeper) wait() error {
	fds := []unix.PollFd{{Fd: int32(k.pair), Events: unix.POLLIN}, {Fd: int32(k.twin), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, -1)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return err
	case fds[0].Revents != 0:
		k.listen()
	case fds[1].Revents != 0:
		k.ended()
	}
	return nil
}

// listen reads all that the twin has said.
func (k *keeper) listen() {
	for k.pair >= 0 {
		m, err := Receive(k.pair)
		if err == unix.EAGAIN || err == unix.EINTR { //nolint:errorlint // they come as they are
			return
		}
		if err != nil {
			if !Ended(err) {
				k.say("leaving, as what the supervisor says cannot be read", err)
				k.over = true // or it would take an item for held that is not
			}
			k.hangUp()
			return
		}
		k.obey(m)
	}
}

// hangUp closes the pair. Its pidfd says when the twin has ended; of one that has never
// said which process it is, this is all there is.
func (k *keeper) hangUp() {
	unix.Close(k.pair)
	k.pair = -1
	if k.twin < 0 && !k.over {
		k.ended()
	}
}

func (k *keeper) obey(m *Message) {
	switch {
	case m.Verb == Hello && len(m.Files) == 1:
		k.know(m.Files[0])
		return
	case m.Verb == Keep:
		k.drop(m.Key)
		k.items[m.Key] = item{m.Value, m.Files}
	default:
		CloseFiles(m.Files)
	}
	switch {
	case m.Verb == All:
		k.whole = true
	case m.Verb == Next && k.child == 0: // its own start is long ago
		k.another("INFO", "the supervisor makes room, starting another")
		return
	case m.Verb == Drop:
		k.drop(m.Key)
	}
	if err := k.send(&Message{Verb: Done, Key: m.Key}); err != nil && !Ended(err) {
		k.say("answering the supervisor", err)
	}
}

func (k *keeper) know(twin int) {
	if k.twin >= 0 {
		unix.Close(k.twin)
	}
	k.twin = twin
}

// drop lets an item go. There is no collector of garbage until there is some.
func (k *keeper) drop(key string) {
	old, ok := k.items[key]
	if !ok {
		return
	}
	CloseFiles(old.files)
	delete(k.items, key)
	const much = 256 << 10 // bytes
	if k.waste += len(key) + len(old.value); k.waste > much {
		debug.FreeOSMemory()
		k.waste = 0
	}
}

// send waits for room, as long as the twin lives.
func (k *keeper) send(m *Message) error {
	for {
		err := Send(k.pair, m)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ETOOMANYREFS): // also nil
			return err
		}
		// ETOOMANYREFS: so many files are on their way that a user may not have more.
		const most = 5 // milliseconds
		fds := []unix.PollFd{{Fd: int32(k.pair), Events: unix.POLLOUT}, {Fd: int32(k.twin), Events: unix.POLLIN}}
		if errors.Is(err, unix.ETOOMANYREFS) {
			fds = fds[1:]
		}
		_, _ = unix.Poll(fds, most)
		if fds[len(fds)-1].Revents != 0 {
			return errEnded
		}
	}
}

// Nobody is the exit status of a supervisor that there is no use in starting again.
const Nobody = 3

func (k *keeper) ended() { k.another("WARN", "the supervisor has ended, starting another") }

// another starts another supervisor after one that has ended, or that makes room. One that had
// not come as far as to hand over all has left nothing to go on with.
func (k *keeper) another(level, why string) {
	if k.forget() == Nobody || !k.whole {
		k.over = true
		return
	}
	// Who asks on the control socket which process is behind it has to see one that is there.
	if control, ok := k.items[ControlKey]; ok && len(control.files) == 1 {
		_ = unix.Listen(control.files[0], backlog)
	}
	if k.failed++; time.Since(k.started) > stableAfter {
		k.failed = 0
	}
	for pause := k.pace.Died(); ; pause = k.pace.Failed() {
		if k.failed >= sayAfter {
			k.say("the supervisor does not stay, so the network does not work until it does", nil, fmt.Sprintf(" times=%d nextTryIn=%v", k.failed, pause))
		} else {
			k.log(level, why, nil)
		}
		time.Sleep(pause)
		err := k.start()
		if err == nil {
			return
		}
		k.failed++
		k.say("starting a supervisor", err)
		k.kill()
		if k.forget() == Nobody {
			k.over = true
			return
		}
	}
}

// forget closes what there is of a twin that has ended, and returns its exit status; -1 when it
// was killed, or nobody knows.
func (k *keeper) forget() (exitStatus int) {
	for _, fd := range []*int{&k.pair, &k.twin} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	exitStatus = -1
	if k.child > 0 {
		var status unix.WaitStatus
		if pid, err := unix.Wait4(k.child, &status, 0, nil); err == nil && pid == k.child {
			k.say("how it ended", nil, fmt.Sprintf(" supervisor=%d exitStatus=%d signal=%d", pid, status.ExitStatus(), status.Signal()))
			exitStatus = status.ExitStatus()
		}
		k.child = 0
	}
	return exitStatus
}

func (k *keeper) kill() {
	if k.child > 0 {
		_ = unix.Kill(k.child, unix.SIGKILL) // ours, and not waited for yet
	}
}

// start starts a supervisor and hands it what we hold.
func (k *keeper) start() error {
	ours, theirs, err := Pair()
	if err != nil {
		return err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(ours)
		unix.Close(theirs)
		return err
	}
	k.pair, k.started = ours, time.Now()
	pidfd := -1
	k.child, err = syscall.ForkExec("/proc/self/exe", []string{"ambi", SupervisorRole, k.title}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{uintptr(null), uintptr(null), 2, uintptr(theirs)},
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	unix.Close(null)
	unix.Close(theirs)
	if err != nil {
		k.child = 0
		return err
	}
	if k.twin = pidfd; pidfd < 0 { // before Linux 5.2
		if k.twin, err = unix.PidfdOpen(k.child, 0); err != nil {
			return err
		}
	}
	return k.handOver()
}

// Environment is that of programs which a supervisor runs. It has none itself, nor has its keeper.
var Environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

func (k *keeper) handOver() error {
	if err := k.hello(); err != nil {
		return err
	}
	for key, i := range k.items {
		if err := k.send(&Message{Verb: Keep, Key: key, Value: i.value, Files: i.files}); err != nil {
			return err
		}
	}
	return k.send(&Message{Verb: All})
}
