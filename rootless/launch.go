package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/supervisor"
	"github.com/ambi-cni/ambi/scope"
)

// launchTimeout is the patience with a supervisor that says nothing at all; one
// that fails says so, and one that dies is noticed at once. It may wait for the driver
// twice, for its tap and for its word (AwaitReady in rootless/driver).
const launchTimeout = 3 * time.Minute

// launcher holds what a supervisor is started with.
type launcher struct {
	config  *supervisor.Config
	alive   *os.File
	control *os.File
	log     *os.File
	way     scope.Way // out of the caller's unit
	folder  string    // of the hub
}

// open makes the files that a supervisor holds. After an error none is open.
func (l *launcher) open(h hub.Hub) (err error) {
	l.folder = h.Dir()
	if l.alive, err = supervisor.LockAlive(h.Path("alive")); err != nil {
		return err
	}
	if l.control, err = controlOfHub(h).Listen(); err != nil {
		l.close()
		return err
	}
	if l.log, err = os.OpenFile(h.Path("log"), os.O_CREATE|os.O_APPEND|os.O_RDWR|unix.O_NOFOLLOW, 0o600); err != nil {
		l.close()
		return fmt.Errorf("supervisor's log: %w", err)
	}
	return nil
}

func (l *launcher) close() {
	for _, f := range []*os.File{l.alive, l.control, l.log} {
		if f != nil {
			f.Close()
		}
	}
}

// start runs a supervisor and returns when there is a hub, and the cgroup that was made for it.
func (l *launcher) start(ctx context.Context) (process record.Process, cgroup string, err error) {
	configRead, configWrite, err := os.Pipe()
	if err != nil {
		return process, cgroup, fmt.Errorf("starting the supervisor: %w", err)
	}
	defer configRead.Close()
	defer configWrite.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		return process, cgroup, fmt.Errorf("starting the supervisor: %w", err)
	}
	defer readyRead.Close()
	l.config.Managers = l.way.Managers
	supervisor.KeepDescriptors()
	cmd, cgroup, err := l.way.Start(l.folder, func() *exec.Cmd {
		cmd := l.command()
		cmd.ExtraFiles = supervisor.Descriptors{Config: configRead, Ready: readyWrite, Alive: l.alive, Control: l.control}.List()
		return cmd
	})
	readyWrite.Close() // so that its death is the end of file
	if err != nil {
		return process, cgroup, fmt.Errorf("starting the supervisor: %w", explain(err))
	}
	process, err = record.ProcessOf(cmd.Process.Pid)
	if err != nil {
		return process, cgroup, fmt.Errorf("starting the supervisor: %w", err)
	}
	go func() {
		// More than a pipe holds, with many ports. A supervisor that died is noticed
		// on the other pipe.
		_ = json.NewEncoder(configWrite).Encode(l.config)
		configWrite.Close()
	}()
	message, err := l.await(ctx, readyRead)
	if err != nil {
		// It keeps a signal for after its start, which it may never get to.
		if err := process.Stop(context.WithoutCancel(ctx)); err != nil {
			return process, cgroup, fmt.Errorf("ending a supervisor that does not become ready: %w", err)
		}
		_ = cmd.Wait()
		return process, cgroup, conf.Errorf(conf.ErrNetwork, "%v (%s): %s", err, cmd.ProcessState, l.lastWords())
	}
	if message.Error != nil {
		_ = cmd.Wait()
		return process, cgroup, message.Error
	}
	return process, cgroup, cmd.Process.Release()
}

// command is our own binary as a supervisor.
func (l *launcher) command() *exec.Cmd {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"ambi", supervisor.Role, l.config.Hub.Title()}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	inOwnUserNamespace(cmd.SysProcAttr)
	cmd.Dir, cmd.Env = "/", []string{}
	// Standard error is the log, also for what a crash has to say.
	cmd.Stderr = l.log
	return cmd
}

// inOwnUserNamespace starts a process as uid 0 of a new user namespace. One line for
// ourselves needs no privilege (user_namespaces(7), "Defining user and group ID mappings").
func inOwnUserNamespace(attr *syscall.SysProcAttr) {
	attr.Cloneflags = syscall.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// explain says what keeps a hub from having a user namespace.
func explain(err error) error {
	const what = "making a user namespace for the hub"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: %v", what, err), "there are as many as may be: raise the sysctl user.max_user_namespaces")
	case errors.Is(err, syscall.EPERM):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: %v", what, err), "allow them to ordinary users: sysctl kernel.unprivileged_userns_clone=1, and with AppArmor kernel.apparmor_restrict_unprivileged_userns=0")
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (l *launcher) await(ctx context.Context, ready *os.File) (*supervisor.Ready, error) {
	if err := ready.SetReadDeadline(time.Now().Add(launchTimeout)); err != nil {
		return nil, fmt.Errorf("waiting for the supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Now()) })
	defer stop()
	return supervisor.DecodeReady(ready)
}

// lastWords is the end of the supervisor's log.
func (l *launcher) lastWords() string {
	b := make([]byte, 2048)
	st, err := l.log.Stat()
	if err != nil {
		return "its log cannot be read"
	}
	n, _ := l.log.ReadAt(b, max(0, st.Size()-int64(len(b))))
	if text := driver.LastLines(string(b[:n]), 3); text != "" {
		return text
	}
	return "it logged nothing"
}
