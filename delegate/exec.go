package delegate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambi-cni/ambi/conf"
)

// runner executes plugins. It differs from invoke.RawExec in three ways: it
// returns when the plugin has ended, not when the last process that holds the
// plugin's pipes has; on a time-out it kills the plugin's children too; and a
// plugin does not outlive us, so that a DEL after our own death does not race
// with what the plugin still does.
type runner struct {
	version.PluginDecoder
	stderr  io.Writer
	timeout time.Duration // zero: none
	inherit *os.File      // nil: none
}

var _ invoke.Exec = &runner{}

// FindInPath returns the path of a plugin in the first of the folders that has
// it. Only absolute folders count: an empty or relative entry of CNI_PATH would
// execute what lies in the current folder.
func (r *runner) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, absolute(paths))
}

// ExecPlugin runs a plugin and returns what it printed. The error of a plugin
// that failed is its own; code 11 is a time-out, code 100 anything else. What
// was printed is returned with an error too.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	if r.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.timeout)
		defer cancel()
	}
	// The kernel sends Pdeathsig when the thread that started the child ends, so
	// that thread must stay with us until the child has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := startPatiently(ctx, func() (*process, error) { return r.start(ctx, path, stdin, env) })
	if err != nil {
		return nil, conf.Errorf(conf.ErrNetwork, "%v", err)
	}
	err = p.wait()
	switch {
	case err == nil && p.stdout.over:
		return nil, conf.Errorf(types.ErrDecodingFailure, "%s printed more than %d bytes", path, mostOutput)
	case err == nil:
		return p.stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, r.timedOut(ctx, path)
	}
	return p.stdout.Bytes(), failure(path, err, p.stdout.Bytes(), p.stderr.Bytes())
}

func (r *runner) timedOut(ctx context.Context, path string) *types.Error {
	after := ""
	switch cause := context.Cause(ctx); {
	case r.timeout > 0 && errors.Is(cause, context.DeadlineExceeded):
		after = fmt.Sprintf(" within %s", r.timeout)
	case !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded):
		after = fmt.Sprintf(" (%v)", cause)
	}
	return conf.Errorf(types.ErrTryAgainLater, "%s did not finish%s and was killed", path, after)
}

// startPatiently retries while the binary is being written (ETXTBSY), as an
// installer that copies over a running host does: every 50 ms, for 5 s.
func startPatiently(ctx context.Context, start func() (*process, error)) (*process, error) {
	const pause, tries = 50 * time.Millisecond, 100
	for try := 1; ; try++ {
		p, err := start()
		if !errors.Is(err, syscall.ETXTBSY) || try == tries {
			return p, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// process is a plugin that runs.
type process struct {
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr *capture
}

// start runs a plugin in a process group of its own: a time-out ends the whole
// group, and a signal to our group does not stop a plugin half way.
func (r *runner) start(ctx context.Context, path string, stdin []byte, env []string) (*process, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	if r.inherit != nil {
		cmd.ExtraFiles = []*os.File{r.inherit}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	p := &process{cmd: cmd}
	childEnds, err := p.pipes(r.stderr)
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range childEnds {
		f.Close()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	go p.stdout.follow()
	go p.stderr.follow()
	go func() {
		// A plugin need not read its input; then this fails, rightly unseen.
		_, _ = p.stdin.Write(stdin)
		p.stdin.Close()
	}()
	return p, nil
}

// pipes connects the three standard streams with *os.File on both sides, so that
// exec.Cmd waits for the process alone.
func (p *process) pipes(stderr io.Writer) (childEnds []*os.File, err error) {
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.stdin, p.cmd.Stdin = stdin, in
	childEnds = append(childEnds, in)
	stdout, out, err := os.Pipe()
	if err != nil {
		return childEnds, err
	}
	p.stdout, p.cmd.Stdout = newCapture(stdout, nil), out
	childEnds = append(childEnds, out)
	errors, errEnd, err := os.Pipe()
	if err != nil {
		return childEnds, err
	}
	p.stderr, p.cmd.Stderr = newCapture(errors, stderr), errEnd
	return append(childEnds, errEnd), nil
}

// wait returns when the plugin has ended and what it printed is here.
func (p *process) wait() error {
	err := p.cmd.Wait()
	p.stdout.finish()
	p.stderr.finish()
	p.close()
	return err
}

func (p *process) close() {
	if p.stdin != nil {
		p.stdin.Close()
	}
	for _, c := range []*capture{p.stdout, p.stderr} {
		if c != nil {
			c.r.Close()
		}
	}
}

// failure is the error of a plugin that did not exit with 0: the one that it
// printed, or one made of how it ended (specification section 5, "Error").
func failure(path string, err error, stdout, stderr []byte) *types.Error {
	var printed types.Error
	if json.Unmarshal(stdout, &printed) == nil && (printed.Code != 0 || printed.Msg != "") {
		if printed.Code == 0 {
			printed.Code = conf.ErrNetwork // 0 is no error code
		}
		if printed.Msg == "" {
			printed.Msg = fmt.Sprintf("%s ended with %v and an error without a message", path, err)
		}
		return &printed
	}
	said := ""
	switch {
	case len(stdout) > 0:
		said = fmt.Sprintf(" and printed no error but %q", tail(stdout))
	case len(stderr) > 0:
		said = fmt.Sprintf(": %q", tail(stderr))
	}
	return conf.Errorf(conf.ErrNetwork, "%s ended with %v%s", path, err, said)
}

// tail is the end of a text that may be too long to show.
func tail(text []byte) []byte {
	const most = 500
	if len(text) > most {
		return text[len(text)-most:]
	}
	return text
}
