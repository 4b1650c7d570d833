package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambi-cni/ambi/e2e/lab"
)

// process is one that a measurement started.
type process struct {
	cmd  *exec.Cmd
	out  *tail
	done chan struct{}
	err  error // after done
}

// asUser makes cmd run without rights, as from a login.
func asUser(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: userID}}
	home := fmt.Sprintf("/run/user/%d", userID)
	cmd.Env = []string{
		"PATH=" + stage + "/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + home, "XDG_RUNTIME_DIR=" + home, "TMPDIR=" + stage + "/tmp", "USER=bench",
	}
	cmd.Dir = "/"
	return cmd
}

// start starts cmd and keeps the end of what it says.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, out: &tail{}, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.out
	}
	cmd.WaitDelay = time.Second // for a daemon that keeps its standard output
	// A session of its own, as who forwards for containers has: the processes of one session share
	// their turns at the processor (sched(7), autogroup), and what is busy beside them would count
	// for some more than for others.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// failure is how an ended process ended.
func (p *process) failure() error {
	if p.err == nil {
		return errors.New("too early")
	}
	return p.err
}

// stop asks the process to go, and makes it go.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(2 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// kill ends the process without asking.
func (p *process) kill() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stopper collects what has to be undone, last first.
type stopper []func()

func (s *stopper) add(f func()) { *s = append(*s, f) }

func (s *stopper) stop() {
	for i := len(*s) - 1; i >= 0; i-- {
		(*s)[i]()
	}
	*s = nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 4096

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if len(t.text) > tailSize {
		t.text = t.text[len(t.text)-tailSize:]
	}
	return len(b), nil
}

// last is the last line that says something.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.text)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		line := strings.TrimSpace(lines[i])
		if line != "" && !strings.HasPrefix(line, "Failed to send") { // pasta, without a system log
			return line
		}
	}
	return "it said nothing"
}

// until asks again and again until the condition holds; a process that ends
// meanwhile is an error with its last words.
func until(what string, p *process, condition func() bool) error {
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if p != nil && p.ended() {
			return fmt.Errorf("%s: %s ended: %w: %s", what, p.cmd.Args[0], p.failure(), p.out.last())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within 10 s", what)
		}
	}
	return nil
}

// container is one of the user.
type container struct{ *lab.Container }

func newContainer() (*container, error) {
	c, err := lab.NewContainer("box", true)
	return &container{c}, err
}

func (c *container) netns() string { return c.Netns }

// inside is a command in both namespaces of the container, owner one in its user
// namespace only: on the host, with rights over the container's network.
func (c *container) inside(argv ...string) *exec.Cmd {
	return c.enter(append([]string{"--net"}, argv...))
}

func (c *container) owner(argv ...string) *exec.Cmd { return c.enter(argv) }

func (c *container) enter(argv []string) *exec.Cmd {
	return asUser(exec.Command("nsenter", append([]string{"--user", "--preserve-credentials", "-t", fmt.Sprint(c.PID)}, argv...)...))
}

func (c *container) stop() { _ = c.End() }

// serveInside starts the server in the container.
func (c *container) serveInside() (*process, error) {
	return start(c.inside(stage+"/bench", "serve", "-listen", fmt.Sprintf(":%d", servicePort)))
}
