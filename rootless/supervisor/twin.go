package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/keeper"
)

// twin is the keeper (rootless/keeper) as its supervisor sees it: it holds all that would end
// with this process, and is started again when it has died.
type twin struct {
	log   *slog.Logger
	title string
	once  sync.Once

	mu      sync.Mutex // all below
	items   map[string]held
	pair    int      // -1: there is none
	pidfd   *os.File // nil: there is none
	pid     int
	child   bool // it is ours, to be waited for
	over    bool // we are leaving
	version int  // of the keeper; 0 until it has said so
}

// held is an item for the keeper: its value, and the way to its files, good while use runs.
type held struct {
	value []byte
	files func(use func(fds ...int) error) error // nil: none
}

func newTwin(title string, log *slog.Logger) *twin {
	return &twin{log: log, title: title, items: map[string]held{}, pair: -1}
}

// withFiles are the files of an item that are open anyway.
func withFiles(files ...*os.File) func(use func(fds ...int) error) error {
	return func(use func(fds ...int) error) error { return withFDs(files, nil, use) }
}

// withFDs does not ask by [os.File.Fd], which has the file be waited for by a thread from
// then on.
func withFDs(files []*os.File, fds []int, use func(fds ...int) error) error {
	if len(files) == 0 {
		return use(fds...)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	open := false
	closed := raw.Control(func(fd uintptr) { open, err = true, withFDs(files[1:], append(fds, int(fd)), use) })
	if !open {
		return fmt.Errorf("%w: %w", os.ErrClosed, closed) // it is an error of its own
	}
	return err
}

// keep has the keeper hold an item, and returns when it does. Where it cannot, the next one
// will.
func (t *twin) keep(key string, i held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.items[key] = i
	t.tell(key, i)
}

// note has what the keeper holds already.
func (t *twin) note(key string, i held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.items[key] = i
}

// handed is an item with files that are about to go to somebody else, from whom item has them
// later.
type handed struct {
	key   string
	item  held
	files []*os.File
}

// hand is keep with files that give takes over; after its error nobody holds them.
func (t *twin) hand(all []handed, give func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range all {
		t.items[h.key] = h.item
		t.tell(h.key, held{h.item.value, withFiles(h.files...)})
	}
	err := give()
	for _, h := range all {
		if err != nil {
			t.letGo(h.key)
		}
	}
	return err
}

// drop has it let an item go after first, unless that fails, and returns when its files are
// closed.
func (t *twin) drop(key string, first func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := first(); err != nil {
		return err
	}
	t.letGo(key)
	return nil
}

func (t *twin) letGo(key string) {
	if _, ok := t.items[key]; !ok {
		return
	}
	delete(t.items, key)
	if t.pair >= 0 {
		t.said(t.exchange(&keeper.Message{Verb: keeper.Drop, Key: key}))
	}
}

// process is the keeper's; 0 while there is none.
func (t *twin) process() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pid
}

func (t *twin) tell(key string, i held) {
	if t.pair < 0 {
		return
	}
	t.said(t.give(key, i))
}

func (t *twin) give(key string, i held) error {
	say := func(fds ...int) error {
		return t.exchange(&keeper.Message{Verb: keeper.Keep, Key: key, Value: i.value, Files: fds})
	}
	if i.files == nil {
		return say()
	}
	return i.files(say)
}

// said: a keeper that does not understand, or does not answer, is of no use.
func (t *twin) said(err error) {
	if err == nil || keeper.Ended(err) {
		return // watch starts another
	}
	if errors.Is(err, os.ErrClosed) {
		return // a driver that has died this moment, and will be dropped
	}
	t.log.Warn("the keeper does not do its part, ending it", "keeper", t.pid, "error", err)
	t.kill()
}

func (t *twin) kill() {
	if t.pidfd == nil {
		return
	}
	onFirstThread(func() { record.KillFD(t.pidfd) })
}

// onFirstThread runs f on the process's first thread where Main has that wait for it, else here.
// To Landlock each thread is confined by itself, and a process is its first thread: who is started by that may
// signal, and be signalled by, this process and all that the same thread has started (confine.Files.Only).
func onFirstThread(f func()) {
	if firstThread == nil {
		f()
		return
	}
	done := make(chan struct{})
	firstThread <- func() { f(); close(done) }
	<-done
}

// firstThread takes calls; nil: nobody waits for them.
var firstThread chan func()

// there says whether there is a keeper.
func (t *twin) there() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pair >= 0
}

// answerTime is the patience with a keeper: it has nothing else to do.
const answerTime = 5 * time.Second

var errMute = errors.New("it does not answer")

// exchange says something and waits until it is done.
func (t *twin) exchange(m *keeper.Message) error {
	deadline := time.Now().Add(answerTime)
	for {
		err := keeper.Send(t.pair, m)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ETOOMANYREFS) {
			return err
		}
		if err := awaitPair(t.pair, unix.POLLOUT, deadline); err != nil {
			return err
		}
	}
	for {
		switch answer, err := keeper.Receive(t.pair); {
		case err == nil && answer.Verb == keeper.Done && answer.Key == m.Key:
			return nil
		case err == nil:
			t.version, _ = strconv.Atoi(string(answer.Value)) // its hello
			keeper.CloseFiles(answer.Files)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			if err := awaitPair(t.pair, unix.POLLIN, deadline); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func awaitPair(fd int, events int16, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return errMute
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(fds, int(left/time.Millisecond)+1)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return err
	case n == 0:
		return errMute
	case events == unix.POLLOUT:
		time.Sleep(time.Millisecond) // there may be room, and yet too many files on their way
	}
	return nil
}

// begin starts a keeper, or watches the one that has started us, from now on for good.
func (t *twin) begin() { t.once.Do(t.beginOnce) }

func (t *twin) beginOnce() {
	if t.there() {
		go t.watch()
		return
	}
	go t.restart() // it may take long, and a driver that dies is not to wait for it
}

// restart starts keepers until one is there.
func (t *twin) restart() {
	for pause := firstBackOff; ; pause = min(2*pause, longestPause) {
		t.mu.Lock()
		if t.over {
			t.mu.Unlock()
			return
		}
		err := t.start(ownProgram)
		if err != nil {
			t.kill()
			t.forget()
		}
		t.mu.Unlock()
		if err == nil {
			go t.watch()
			return
		}
		t.log.Error("starting a keeper", "error", err, "next try in", pause)
		time.Sleep(pause)
	}
}

const ownProgram = "/proc/self/exe"

// start is called with the lock held.
func (t *twin) start(program string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ours, theirs, err := keeper.Pair()
	if err != nil {
		return err
	}
	t.pair = ours
	pidfd := -1
	onFirstThread(func() {
		t.pid, err = syscall.ForkExec(program, []string{"ambi", keeper.Role, t.title}, &syscall.ProcAttr{
			Dir: "/", Env: []string{}, Files: []uintptr{null.Fd(), null.Fd(), os.Stderr.Fd(), uintptr(theirs)},
			Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
		})
	})
	unix.Close(theirs) // or nobody would see that a keeper ends which has not answered yet
	if err != nil {
		t.pid = 0
		return err
	}
	t.child = true
	if pidfd < 0 { // before Linux 5.2
		if pidfd, err = unix.PidfdOpen(t.pid, 0); err != nil {
			return err
		}
	}
	t.know(pidfd)
	return t.introduce()
}

// goesOn is the version of keepers from which on they start a supervisor beside another one, which
// goes on with its driver. Older ones cannot start any, being of a process that gets no new privileges.
const goesOn = 2

// replace puts a keeper of another program in place of this one, which stays where that cannot
// be. It is the last thing that is done before this process ends.
func (t *twin) replace(program string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return errLeaving
	}
	before := twin{pair: t.pair, pidfd: t.pidfd, pid: t.pid, child: t.child, version: t.version}
	t.pair, t.pidfd, t.pid, t.child, t.version = -1, nil, 0, false, 0
	err := t.start(program)
	if err == nil && t.version < goesOn {
		err = conf.Mendf(conf.Errorf(conf.ErrNetwork, "its program is too old to go on with this network"), "take the containers down (DEL) and set them up again (ADD) with that program")
	}
	if err != nil {
		t.kill()
		t.forget()
		t.pair, t.pidfd, t.pid, t.child, t.version = before.pair, before.pidfd, before.pid, before.child, before.version
		return err
	}
	t.over = true // whatever becomes of it now, we start no other
	before.kill()
	if before.pidfd != nil {
		record.AwaitExit(before.pidfd)
	}
	before.forget()
	return nil
}

// next has the keeper start another supervisor beside this one.
func (t *twin) next(generation int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	own, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	_ = unix.SetNonblock(own, true) // as know does
	err = t.exchange(&keeper.Message{Verb: keeper.Keep, Key: keyDraining + strconv.Itoa(generation), Files: []int{own}})
	if err == nil {
		err = keeper.Send(t.pair, &keeper.Message{Verb: keeper.Next})
	}
	return err
}

// introduce tells a keeper who we are, and what to hold.
func (t *twin) introduce() error {
	own, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if err := keeper.Send(t.pair, &keeper.Message{Verb: keeper.Hello, Value: []byte(keeper.Version), Files: []int{own}}); err != nil {
		return err
	}
	for key, i := range t.items {
		err := t.give(key, i)
		if key == keyDriver && errors.Is(err, os.ErrClosed) {
			continue // it has died this moment, and will be dropped
		}
		if errors.Is(err, os.ErrNotExist) {
			// A port that could not be forwarded when we took over: only the keeper before had its socket.
			// CHECK goes on naming it.
			t.log.Warn("the keeper does without what there is not", "what", key, "error", err)
			err = t.give(key, held{value: i.value})
		}
		if err != nil {
			return fmt.Errorf("handing it %q: %w", key, err)
		}
	}
	return t.exchange(&keeper.Message{Verb: keeper.All})
}

func (t *twin) know(pidfd int) {
	_ = unix.SetNonblock(pidfd, true) // so that Go's poller waits for it, and no thread
	t.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
}

// watch starts another keeper when this one has ended.
func (t *twin) watch() {
	t.mu.Lock()
	pidfd := t.pidfd
	t.mu.Unlock()
	if pidfd == nil {
		return // we are leaving
	}
	record.AwaitExit(pidfd)
	t.mu.Lock()
	leaving := t.over
	if !leaving {
		t.log.Warn("the keeper has ended, starting another", "keeper", t.pid)
		t.forget()
	}
	t.mu.Unlock()
	if !leaving {
		t.restart()
	}
}

// forget closes what there is of a keeper that has ended, or was killed; with the lock held.
func (t *twin) forget() {
	if t.pair >= 0 {
		unix.Close(t.pair)
	}
	if t.child {
		_, _ = unix.Wait4(t.pid, nil, 0, nil)
	}
	if t.pidfd != nil {
		t.pidfd.Close()
	}
	t.pair, t.pid, t.pidfd, t.child, t.version = -1, 0, nil, false, 0
}

// end ends the keeper, for good, and returns when it holds nothing any more.
func (t *twin) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.kill()
	if t.pidfd != nil {
		record.AwaitExit(t.pidfd)
	}
	t.forget()
}

// takeOver reads what a keeper holds, on the pair that it has started us with.
func takeOver(fd int, title string) (*twin, map[string]keeper.Message, error) {
	t := newTwin(title, nil)
	t.pair = fd
	_ = unix.SetNonblock(fd, true)
	items := map[string]keeper.Message{}
	if err := t.hear(items); err != nil {
		for _, m := range items {
			keeper.CloseFiles(m.Files)
		}
		t.forget()
		return nil, nil, err
	}
	return t, items, nil
}

// hear reads until that is all.
func (t *twin) hear(items map[string]keeper.Message) error {
	for {
		m, err := keeper.Receive(t.pair)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			if err := awaitPair(t.pair, unix.POLLIN, time.Now().Add(controlTimeout)); err != nil {
				return fmt.Errorf("what the keeper holds: %w", err)
			}
			continue
		case err != nil:
			return fmt.Errorf("what the keeper holds: %w", err)
		}
		switch {
		case m.Verb == keeper.Hello && len(m.Files) == 1 && t.pidfd == nil:
			t.version, _ = strconv.Atoi(string(m.Value))
			t.know(m.Files[0])
			t.pid = pidOfPidfd(m.Files[0])
			continue
		case m.Verb == keeper.Keep:
			keeper.CloseFiles(items[m.Key].Files)
			items[m.Key] = *m
			continue
		}
		keeper.CloseFiles(m.Files)
		switch {
		case m.Verb != keeper.All:
		case t.pidfd == nil:
			return errors.New("what the keeper holds: it does not say which process it is")
		default:
			return nil
		}
	}
}

// pidOfPidfd is the process that a pidfd is of (proc_pid_fdinfo(5)); 0 when that cannot be seen.
func pidOfPidfd(fd int) int {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(fieldOf(string(b), "Pid:"))
	return pid
}

// fieldOf is the value of a field in a list of lines "NAME VALUE".
func fieldOf(lines, name string) string {
	for line := range strings.Lines(lines) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
