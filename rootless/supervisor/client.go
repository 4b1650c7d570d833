package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
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
		unix.Listen(fd, 16),
	); err != nil {
		f.Close()
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return f, nil
}

func (c Control) dial() (*net.UnixConn, error) {
	name, folder, err := record.SocketName(string(c))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	return conn, nil
}

// Status asks the supervisor how it is.
func (c Control) Status() (*Status, error) { return c.call(request{Op: opStatus}) }

// Check has it look whether all is as it should be. mac is the interface's address when
// that may be another one than it was given.
func (c Control) Check(mac string) error {
	_, err := c.call(request{Op: opCheck, MAC: mac})
	return err
}

// AddPort has it publish one more port, by the sockets that are bound for it.
func (c Control) AddPort(m conf.PortMapping, sockets []forward.Socket) error {
	_, err := c.call(request{Op: opAddPort, Port: &m}, sockets...)
	return err
}

// RemovePort has it take a published port back.
func (c Control) RemovePort(m conf.PortMapping) error {
	_, err := c.call(request{Op: opRemovePort, Port: &m})
	return err
}

func (c Control) call(r request, sockets ...forward.Socket) (*Status, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var oob []byte
	if len(sockets) > 0 {
		fds := make([]int, len(sockets))
		for i, s := range sockets {
			fds[i] = int(s.File.Fd())
			r.Families = append(r.Families, s.Family)
		}
		oob = unix.UnixRights(fds...)
	}
	line, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, _, err := conn.WriteMsgUnix(append(line, '\n'), oob, nil); err != nil {
		return nil, err
	}
	return decodeReply(conn)
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

// Process is the one that listens on the control socket: the way to the
// supervisor when the record does not tell. Only we can have put it there, since
// the folder is closed to others; its uid may be a subordinate one of ours.
func (c Control) Process() (*record.Process, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	cred, err := peerCredentials(conn)
	if err != nil {
		return nil, err
	}
	p, err := record.ProcessOf(int(cred.Pid))
	if err != nil {
		return nil, fmt.Errorf("process %s behind the control socket: %w", strconv.Itoa(int(cred.Pid)), err)
	}
	return &p, nil
}
