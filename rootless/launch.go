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

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// launchTimeout is the patience with a supervisor that says nothing at all; one
// that fails says so, and one that dies is noticed at once. It may wait for the driver
// twice, for its tap and for its word (AwaitReady in rootless/driver).
const launchTimeout = 3 * time.Minute

// launcher holds what a supervisor is started with.
type launcher struct {
	config    *supervisor.Config
	namespace *namespace // nil: the supervisor makes a hub
	alive     *os.File
	control   *os.File
	log       *os.File
	sockets   []forward.Socket
}

// start runs a supervisor and returns when it is ready.
func (l *launcher) start(ctx context.Context) (record.Process, *supervisor.Ready, error) {
	process, message, err := l.try(ctx, "--preserve-credentials")
	if err == nil && message.LostRights && l.namespace != nil && l.namespace.owner != nil {
		// Our uid is not 0 in that user namespace, so execve(2) took the capabilities
		// (podman --userns=keep-id is such a one). Its uid 0 keeps them.
		process, message, err = l.try(ctx, "--setuid=0", "--setgid=0")
	}
	switch {
	case err != nil:
		return record.Process{}, nil, err
	case message.LostRights && l.namespace == nil:
		return record.Process{}, nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "the hub has no rights in the user namespace that it made"),
			"allow user namespaces to ordinary users (with AppArmor: sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
	case message.LostRights:
		return record.Process{}, nil, record.NetnsError(l.config.Container.Netns.Path, "its owning user namespace gives us no CAP_NET_ADMIN and CAP_SYS_ADMIN",
			"map this user to uid 0 in it (unshare -Urn), or map uid 0 to one of its subordinate uids")
	case message.Error != nil:
		return record.Process{}, nil, message.Error
	}
	return process, message, nil
}

// try is one start; nsenter's way to handle credentials is given.
func (l *launcher) try(ctx context.Context, credentials ...string) (record.Process, *supervisor.Ready, error) {
	configRead, configWrite, err := os.Pipe()
	if err != nil {
		return record.Process{}, nil, fmt.Errorf("starting the supervisor: %w", err)
	}
	defer configRead.Close()
	defer configWrite.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		return record.Process{}, nil, fmt.Errorf("starting the supervisor: %w", err)
	}
	defer readyRead.Close()
	cmd, err := l.command(credentials)
	if err == nil {
		d := supervisor.Descriptors{Config: configRead, Ready: readyWrite, Alive: l.alive, Control: l.control, Sockets: l.sockets}
		if l.namespace != nil {
			d.Netns, d.Owner = l.namespace.file, l.namespace.owner
		}
		cmd.ExtraFiles = d.List()
		supervisor.KeepDescriptors()
		err = cmd.Start()
	}
	readyWrite.Close() // so that its death is the end of file
	if err != nil {
		return record.Process{}, nil, fmt.Errorf("starting the supervisor: %w", l.explain(err))
	}
	process, err := record.ProcessOf(cmd.Process.Pid)
	if err != nil {
		return record.Process{}, nil, fmt.Errorf("starting the supervisor: %w", err)
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
			return record.Process{}, nil, fmt.Errorf("ending a supervisor that does not become ready: %w", err)
		}
		_ = cmd.Wait()
		return record.Process{}, nil, conf.Errorf(conf.ErrNetwork, "%v (%s): %s", err, cmd.ProcessState, l.lastWords())
	}
	if message.Error != nil || message.LostRights || l.config.CleanOnly {
		// It takes down what it started and ends.
		_ = cmd.Wait()
		return record.Process{}, message, nil
	}
	return process, message, cmd.Process.Release()
}

// command is our own binary as a supervisor, entered into the owning user
// namespace by nsenter(1) when that has to be joined: setns(2) refuses a
// multi-threaded process, which every Go program is.
func (l *launcher) command(credentials []string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	about := l.config.Container.Key.String()
	if l.config.Hub != nil {
		about = l.config.Hub.Network
	}
	argv := []string{self, supervisor.Role, about}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"ambi"}, argv[1:]...)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if l.namespace == nil {
		inOwnUserNamespace(cmd.SysProcAttr)
	}
	if l.config.Joined = l.namespace != nil && l.namespace.owner != nil; l.config.Joined {
		nsenter, err := LookUpNsenter()
		if err != nil {
			return nil, err
		}
		cmd.Path = nsenter
		cmd.Args = append([]string{"nsenter", fmt.Sprintf("--user=/proc/self/fd/%d", supervisor.OwnerFD)}, append(credentials, argv...)...)
	}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	// Standard error is the log, also for what nsenter and a crash have to say.
	cmd.Stderr = l.log
	return cmd, nil
}

// inOwnUserNamespace starts a process as uid 0 of a new user namespace. One line for
// ourselves needs no privilege (user_namespaces(7), "Defining user and group ID mappings").
func inOwnUserNamespace(attr *syscall.SysProcAttr) {
	attr.Cloneflags = syscall.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// explain says what keeps a hub from having a user namespace.
func (l *launcher) explain(err error) error {
	if l.namespace != nil {
		return err
	}
	const what = "making a user namespace for the hub"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: %v", what, err), "there are as many as may be: raise the sysctl user.max_user_namespaces")
	case errors.Is(err, syscall.EPERM):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: %v", what, err), "allow them to ordinary users: sysctl kernel.unprivileged_userns_clone=1, and with AppArmor kernel.apparmor_restrict_unprivileged_userns=0")
	}
	return fmt.Errorf("%s: %w", what, err)
}

// LookUpNsenter finds nsenter(1), which enters user namespaces of containers.
func LookUpNsenter() (string, error) {
	if path := driver.LookUp("nsenter"); path != "" {
		return path, nil
	}
	return "", conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "nsenter is needed to enter the user namespace of the container and is not installed"), "install the package util-linux")
}

func (l *launcher) await(ctx context.Context, ready *os.File) (*supervisor.Ready, error) {
	if err := ready.SetReadDeadline(time.Now().Add(launchTimeout)); err != nil {
		return nil, fmt.Errorf("waiting for the supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Now()) })
	defer stop()
	return supervisor.DecodeReady(ready, l.config.CleanOnly)
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
