package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	hubs "github.com/ambi-cni/ambi/rootless/hub"
)

// Control is the path of a supervisor's control socket, for those who ask it. The errors
// of a question are the supervisor's own, each a *types.Error, or that it does not answer.
type Control string

// Listen makes the control socket, closed to other users.
func (c Control) Listen() (*os.File, error) {
	path := string(c)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	name, folder, err := record.SocketName(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer folder.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := errors.Join(
		unix.Fchmod(fd, 0o600), // the mode of the name to come
		unix.Bind(fd, &unix.SockaddrUnix{Name: name}),
		unix.Listen(fd, backlog),
	); err != nil {
		f.Close()
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return f, nil
}

func (c Control) dial() (*net.UnixConn, error) {
	deadline := time.Now().Add(besetPatience)
	f, err := hubs.Dial(string(c), deadline)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(deadline)
	return conn.(*net.UnixConn), nil
}

// backlog is how many may wait to be answered: all members of a hub at once.
const backlog = 1024

// Open hands out files of the hub's network namespace: of a shared network a netlink socket of
// NETLINK_NETFILTER, then those of a link.Place.
func (c Control) Open() ([]*os.File, error) { return c.open(request{Op: opOpen}) }

// StandIn hands out files of the namespace that plugins have in place of a member's, as
// those of a link.Place; it makes it when there is none.
func (c Control) StandIn(member conf.Key) ([]*os.File, error) {
	return c.open(request{Op: opStandIn, Member: &member})
}

// Run runs a CNI verb in the hub for a member. After DEL its stand-in is gone.
func (c Control) Run(member conf.Key, v Verb) (*Ran, error) {
	var out reply
	err := c.exchange(request{Op: opVerb, Member: &member, Verb: &v}, nil, func(conn *net.UnixConn) error {
		return json.NewDecoder(io.LimitReader(conn, replyLimit)).Decode(&out)
	})
	switch {
	case err != nil:
		return nil, err
	case out.Error != nil:
		return nil, out.Error
	case out.Ran == nil:
		return nil, errors.New("it does not say what the verb did")
	}
	return out.Ran, nil
}

func (c Control) open(r request) (files []*os.File, err error) {
	err = c.exchange(r, nil, func(conn *net.UnixConn) error {
		from, received, err := receive(conn)
		files = received
		if err == nil {
			_, err = decodeReply(from)
		}
		return err
	})
	if err == nil && len(files) == 0 {
		err = errors.New("it handed out no files")
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// Await returns when the hub has a driver, or with why it has none; or when ctx ends.
func (c Control) Await(ctx context.Context) error {
	return c.exchange(request{Op: opAwait}, nil, func(conn *net.UnixConn) error {
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
		_, err := decodeReply(conn)
		return err
	})
}

// ServeNames has the hub serve the names of its members at the bridge's addresses.
func (c Control) ServeNames(servers []netip.Addr) error {
	_, err := c.call(request{Op: opNames, Servers: servers})
	return err
}

// Leave has the hub take back all ports of a member, and forget the flows that it counted of
// its addresses.
func (c Control) Leave(member conf.Key, addresses []netip.Addr) error {
	_, err := c.call(request{Op: opLeave, Member: &member, Addresses: addresses})
	return err
}

// RemoveLinks has the hub remove interfaces, and returns when they are gone.
func (c Control) RemoveLinks(indexes []int) error {
	_, err := c.call(request{Op: opUnlink, Links: indexes})
	return err
}

// RemoveLink has the hub remove the interface of a name, if it is there, and returns when it is
// gone.
func (c Control) RemoveLink(name string) error {
	_, err := c.call(request{Op: opUnlink, Link: name})
	return err
}

// Publish has the hub forward ports to a member.
func (c Control) Publish(member conf.Key, t forward.Target, sockets []forward.Socket) error {
	for len(sockets) > 0 {
		n := portion(sockets)
		some := sockets[:n]
		sockets = sockets[n:]
		r := request{Op: opAddPort, Member: &member, Target: &t}
		for _, s := range some {
			r.Sockets = append(r.Sockets, Socket{s.Mapping, s.Family})
		}
		if _, err := c.call(r, some...); err != nil {
			return err
		}
	}
	return nil
}

// portion is how many of the sockets go along with the next request: those of a mapping go
// together, since a mapping that is published has been asked for already (see hub.publish).
func portion(sockets []forward.Socket) int {
	n := min(len(sockets), filesAtOnce)
	for n > 1 && n < len(sockets) && sockets[n].Mapping == sockets[n-1].Mapping {
		n--
	}
	return n
}

// PublishByDriver has the driver of a private network forward a port to its only member.
func (c Control) PublishByDriver(m conf.PortMapping) error {
	_, err := c.call(request{Op: opAddPort, Port: &m})
	return err
}

// Replace has a supervisor and its keeper run another program from now on, and returns the
// processes of before and after, which are the same where they run that already. There is a way
// out then.
func (c Control) Replace(program *os.File) (before, after int, err error) {
	status, err := c.call(request{Op: opReplace}, forward.Socket{File: program})
	if err != nil {
		return 0, 0, err
	}
	before = status.PID
	if !status.Leaving {
		return before, before, nil
	}
	// Whoever answers the next question has taken over, or has not left yet.
	for deadline := time.Now().Add(awaitTimeout); status.PID == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return before, 0, errors.New("it does not make room for another")
		}
		if status, err = c.call(request{Op: opStatus}); err != nil {
			return before, 0, err
		}
	}
	if err := c.Await(context.Background()); err != nil {
		return before, status.PID, fmt.Errorf("supervisor %d is in place of %d, and there is no way out: %w", status.PID, before, err)
	}
	return before, status.PID, nil
}

// Withdraw has the hub take back a port of a member.
func (c Control) Withdraw(member conf.Key, m conf.PortMapping) error {
	_, err := c.call(request{Op: opRemovePort, Member: &member, Port: &m})
	return err
}

// StatusOf is Status of a member of the hub, which has these addresses. link is the hub's end
// of the link to it.
func (c Control) StatusOf(member conf.Key, link string, addresses []netip.Addr) (*Status, error) {
	return c.call(request{Op: opStatus, Member: &member, Link: link, Addresses: addresses})
}

// CheckOf is Check of a member of the hub.
func (c Control) CheckOf(member conf.Key) error {
	_, err := c.call(request{Op: opCheck, Member: &member})
	return err
}

func (c Control) call(r request, sockets ...forward.Socket) (*Status, error) {
	var files []*os.File
	for _, s := range sockets {
		files = append(files, s.File)
	}
	var status *Status
	err := c.exchange(r, files, func(conn *net.UnixConn) (err error) {
		status, err = decodeReply(conn)
		return err
	})
	return status, err
}

// ErrBeset is of a supervisor that is there, and on which others are so many that it has hung
// up on us again and again.
var ErrBeset = errors.New("it hangs up, since other programs keep its control socket busy")

// besetPatience is how long one asks again, and waits until one is read: a DEL that fails may be
// the last.
const besetPatience = time.Minute

// exchange asks and has the answer read.
func (c Control) exchange(r request, files []*os.File, read func(*net.UnixConn) error) error {
	return insist(time.Now().Add(besetPatience), func() error {
		conn, err := c.ask(r, files)
		if err != nil {
			return err
		}
		defer conn.Close()
		return read(conn)
	})
}

// insist asks again where a supervisor hangs up, which is beset by others then and has not read
// the request (see waiting). One that has ended refuses instead.
func insist(deadline time.Time, ask func() error) error {
	for {
		err := ask()
		if !hungUp(err) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w", ErrBeset, err)
		}
	}
}

func hungUp(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, errHungUp, unix.EPIPE, unix.ECONNRESET}, func(e error) bool { return errors.Is(err, e) })
}

// ask sends a request.
func (c Control) ask(r request, files []*os.File) (*net.UnixConn, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(r.callersPatience()))
	if err := send(conn, r, files); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// callersPatience is how long the caller waits, since many requests may have to be read before this
// one. Who removes a single link has another way to.
func (r *request) callersPatience() time.Duration {
	if r.Op == opUnlink && r.Link != "" {
		return controlTimeout
	}
	return max(r.patience(), besetPatience)
}

// decodeReply reads what a supervisor answers: its status, or its error.
func decodeReply(from io.Reader) (*Status, error) {
	var out reply
	switch err := json.NewDecoder(io.LimitReader(from, replyLimit)).Decode(&out); {
	case err != nil:
		return nil, err
	case out.Error != nil:
		return nil, out.Error
	case out.Status == nil:
		return nil, errors.New("it answered neither a status nor an error")
	}
	return out.Status, nil
}
