package scope

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Ask asks the managers, one after the other, for a scope of the processes. It returns when
// this process is in it, or an error when ctx ends before. network is what they are for.
func Ask(ctx context.Context, managers []string, network string, pids ...int) error {
	var errs []error
	for _, socket := range managers {
		err := ask(ctx, socket, network, pids)
		if err == nil {
			return await(ctx)
		}
		errs = append(errs, fmt.Errorf("%s: %w", socket, err))
	}
	return errors.Join(errs...)
}

func ask(ctx context.Context, socket, network string, pids []int) error {
	raw, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	const most = 1 << 20 // bytes: its answers are short, and the library believes what it says
	conn, err := dbus.NewConn(limited{raw, io.LimitReader(raw, most)}, dbus.WithContext(ctx))
	if err != nil {
		raw.Close()
		return err
	}
	defer conn.Close()
	// It goes by the credentials of the socket, so that who is uid 0 of a user namespace need not know who
	// he is outside.
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal("")}); err != nil {
		return err
	}
	properties := []property{
		{"Description", dbus.MakeVariant("network of containers: " + network)},
		{"PIDs", dbus.MakeVariant(numbers(pids))},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")}, // it is gone with its last process
	}
	// One that is killed for want of memory is started again by its twin, and not to take that along.
	// Scopes have it since systemd 253, and before it was never more than the one process.
	err = start(ctx, conn, unitName(network), append(properties, property{"OOMPolicy", dbus.MakeVariant("continue")}))
	if unknown(err) {
		err = start(ctx, conn, unitName(network), properties)
	}
	return err
}

// limited is a connection of which no more is read than reader has.
type limited struct {
	*net.UnixConn
	reader io.Reader
}

func (l limited) Read(b []byte) (int, error) { return l.reader.Read(b) }

// dial connects to a manager. One of another user is none, nor is one outside of our PID
// namespace, which has other numbers for processes (unix(7), SO_PEERCRED).
func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	raw, rawErr := conn.SyscallConn()
	if err = errors.Join(err, rawErr); err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { rawErr = isOurManager(int(fd)) }), rawErr)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func isOurManager(fd int) error {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	switch {
	case err != nil:
		return err
	case int(peer.Uid) != os.Geteuid():
		return errors.New("it is of another user")
	case peer.Pid == 0:
		return errors.New("it is outside of our PID namespace")
	}
	its, err := depth(int(peer.Pid))
	own, ownErr := depth(os.Getpid())
	if err == nil && ownErr == nil && its != own {
		return errors.New("it is in a PID namespace inside of ours")
	}
	return nil // also where nobody can tell
}

// depth is how many PID namespaces lead from that of /proc to the one of a process: so many numbers
// it has there (the field NSpid of a pidfd, proc_pid_fdinfo(5)). That its own folder in /proc may be hidden does not count.
func depth(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(numbers)), nil
		}
	}
	return 0, errors.ErrUnsupported // before Linux 5.5
}

// property is one of a unit, org.freedesktop.systemd1(5).
type property struct {
	Name  string
	Value dbus.Variant
}

func numbers(pids []int) (all []uint32) {
	for _, pid := range pids {
		all = append(all, uint32(pid))
	}
	return all
}

func start(ctx context.Context, conn *dbus.Conn, unit string, properties []property) error {
	type auxiliary struct {
		Name       string
		Properties []property
	}
	manager := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	return manager.CallWithContext(ctx, "org.freedesktop.systemd1.Manager.StartTransientUnit", 0,
		unit, "fail", properties, []auxiliary{}).Err
}

// unknown says that a property is not one of such a unit.
func unknown(err error) bool {
	var refusal dbus.Error
	return errors.As(err, &refusal) && refusal.Name == "org.freedesktop.DBus.Error.PropertyReadOnly"
}

// unitName is one that no other scope has: of the network what may be in the name of a unit
// (systemd.unit(5)), and the process that asks.
func unitName(network string) string {
	const longest = 100
	var name strings.Builder
	for _, c := range []byte(network) {
		switch {
		case name.Len() > longest:
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.':
			name.WriteByte(c)
		default: // also "-", which is "/" in such a name
			fmt.Fprintf(&name, `\x%02x`, c)
		}
	}
	return fmt.Sprintf("%s%s-%d%s", prefix, name.String(), os.Getpid(), suffix)
}

// await waits until this process is in its scope: the manager answers before.
func await(ctx context.Context) error {
	const pause = 5 * time.Millisecond
	for !Out() {
		select {
		case <-ctx.Done():
			return errors.New("systemd has a scope for it, and has not put it there")
		case <-time.After(pause):
		}
	}
	return nil
}
