package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Verb is one call of the plugin.
type Verb struct {
	Name                       string // ADD, CHECK, DEL, GC, STATUS, VERSION
	ContainerID, IfName, Netns string
	Config                     string // standard input
	UID                        int
}

// Patience bounds a verb. One that takes longer hangs.
const Patience = 5 * time.Minute

// searchPath is that of an ordinary host: a report names what was looked for, and not
// where the one who made it keeps programs.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ErrHangs is what Run returns, wrapped, for a verb that does not end.
var ErrHangs = errors.New("hangs")

// Command is the verb, not started.
func (v Verb) Command() *exec.Cmd {
	cmd := exec.Command(Stage + "/bin/ambi")
	cmd.Env = []string{
		"CNI_COMMAND=" + v.Name, "CNI_CONTAINERID=" + v.ContainerID, "CNI_IFNAME=" + v.IfName, "CNI_NETNS=" + v.Netns,
		"CNI_PATH=" + Stage + "/plugins", "PATH=" + searchPath,
	}
	if v.UID != 0 {
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+RuntimeDir)
	}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(v.Config)
	cmd.SysProcAttr = As(v.UID)
	return cmd
}

// Result is what a verb did.
type Result struct {
	Exit   int // its status, or 128 + the signal that ended it
	Out    string
	Stderr string
	Took   time.Duration
}

// Run runs a command to its end; during, when given, does something to it
// meanwhile. The error is that of the test, or ErrHangs; how the verb ended is in
// the result.
func Run(cmd *exec.Cmd, during func(pid int)) (*Result, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	// A daemon that holds our pipes would look like a verb that does not end.
	cmd.WaitDelay = 30 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if during != nil {
		during(cmd.Process.Pid)
	}
	err := cmd.Wait()
	r := &Result{Out: out.String(), Stderr: stderr.String(), Exit: cmd.ProcessState.ExitCode(), Took: time.Since(started)}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		r.Exit = 128 + int(status.Signal())
	}
	if ctx.Err() != nil {
		return r, fmt.Errorf("%w: not finished within %s: %s", ErrHangs, Patience, r.Stderr)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return r, fmt.Errorf("%w: somebody holds its standard output", ErrHangs)
	}
	return r, nil
}

// Error is the error that a verb printed, "CODE: MSG; DETAILS"; said is false when it
// did not end by itself, or without one.
func (r *Result) Error() (msg string, said bool) {
	var e struct {
		Code    int    `json:"code"`
		Msg     string `json:"msg"`
		Details string `json:"details"`
	}
	if r.Exit == 0 || json.Unmarshal([]byte(r.Out), &e) != nil || e.Msg == "" {
		return "", false
	}
	return strings.TrimSuffix(fmt.Sprintf("%d: %s; %s", e.Code, e.Msg, e.Details), "; "), true
}
