package supervisor

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

func TestDecodeRequest(t *testing.T) {
	r, err := decodeRequest(strings.NewReader(`{"op":"port-add","port":{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"::1"}}` + "\nrest"))
	require.NoError(t, err)
	require.Equal(t, "port-add", r.Op)
	require.Equal(t, "[::1]:8080->80/tcp", r.Port.String())

	for in, why := range map[string]string{
		"":                                     "not one line",
		`{"op":"stop"}`:                        "not one line", // the caller died in the middle of it
		"\n":                                   "not JSON",
		"stop\n":                               "not JSON",
		`{"op":1}` + "\n":                      "not JSON",
		`{"port":{"hostPort":70000}}` + "\n":   "not JSON",
		`{"port":{"hostIP":"nowhere"}}` + "\n": "not JSON",
		strings.Repeat("x", requestLimit+1) + "\n": "not one line of at most 4194304 bytes",
	} {
		_, err := decodeRequest(strings.NewReader(in))
		require.ErrorContains(t, err, why, "%.40q", in)
	}
}

// FuzzDecodeRequest: nothing that a caller sends makes the supervisor panic, or
// read more than a request may have.
func FuzzDecodeRequest(f *testing.F) {
	for _, s := range []string{"", "\n", "null\n", `{"op":"status"}` + "\n", `{"op":"port-add","port":{"hostPort":1,"hostIP":"fe80::1%e"}}` + "\n", "{\"op\":\"\\ud800\"}\n"} {
		f.Add([]byte(s), 0)
	}
	f.Add([]byte("x"), requestLimit)
	f.Fuzz(func(t *testing.T, b []byte, padding int) {
		in := io.MultiReader(strings.NewReader(strings.Repeat(" ", max(0, padding)%(2*requestLimit))), strings.NewReader(string(b)))
		counted := &countingReader{from: in}
		r, err := decodeRequest(counted)
		require.LessOrEqual(t, counted.n, requestLimit)
		if err == nil && r.Port != nil {
			_ = r.Port.String()
		}
	})
}

type countingReader struct {
	from io.Reader
	n    int
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.from.Read(b)
	c.n += n
	return n, err
}

// startControl serves a control socket whose name is too long for bind(2).
func startControl(t *testing.T, answer func(request, []*os.File) reply) Control {
	t.Helper()
	path, l := listen(t)
	go serveControl(l, os.Geteuid(), slog.New(slog.DiscardHandler), answer)
	return path
}

func listen(t *testing.T) (Control, *net.UnixListener) {
	t.Helper()
	path := Control(filepath.Join(longFolder(t), "x.sock"))
	f, err := path.Listen()
	require.NoError(t, err)
	l, err := net.FileListener(f)
	require.NoError(t, err)
	f.Close()
	t.Cleanup(func() { l.Close() })
	return path, l.(*net.UnixListener)
}

// longFolder is a folder whose sockets have names too long for bind(2).
func longFolder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir
}

func TestControlSocket(t *testing.T) {
	path := startControl(t, func(r request, files []*os.File) reply {
		defer closeAll(files)
		switch r.Op {
		case opStatus:
			return reply{Status: &Status{PID: 7, MAC: fmt.Sprint(len(files))}}
		case opAddPort:
			b := make([]byte, 2)
			n, _ := files[0].Read(b)
			return reply{Status: &Status{PID: len(files), MAC: string(b[:n]) + r.Port.String()}}
		}
		return reply{Error: conf.Errorf(conf.ErrNetwork, "no %s today", r.Op)}
	})
	st, err := os.Stat(string(path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	status, err := path.call(request{Op: opStatus})
	require.NoError(t, err)
	require.Equal(t, 7, status.PID)
	require.Equal(t, "0", status.MAC)

	_, err = path.call(request{Op: opCheck})
	unit.RequireError(t, err, conf.ErrNetwork, "no check today")

	var sockets []forward.Socket
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		_, _ = w.WriteString("ok")
		w.Close()
		defer r.Close()
		sockets = append(sockets, forward.Socket{Family: family, File: r})
	}
	status, err = path.call(request{Op: opAddPort, Port: &conf.PortMapping{HostPort: 1, ContainerPort: 2, Protocol: conf.UDP}}, sockets...)
	require.NoError(t, err)
	require.Equal(t, 2, status.PID, "both descriptors arrive")
	require.Equal(t, "ok*:1->2/udp", status.MAC)

	_, err = path.call(request{Op: opAddPort}, slices.Repeat(sockets, filesAtOnce/2+1)...)
	unit.RequireError(t, err, types.ErrDecodingFailure, "more descriptors")
}

// TestPublishManyPorts: the sockets of a mapping go together, however many there are.
func TestPublishManyPorts(t *testing.T) {
	requests := make(chan []Socket, 10)
	path := startControl(t, func(r request, files []*os.File) reply {
		defer closeAll(files)
		require.Len(t, files, len(r.Sockets))
		requests <- r.Sockets
		return reply{Status: &Status{PID: 7}}
	})
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	var all []forward.Socket
	for port := range uint16(2 * filesAtOnce) {
		m := conf.PortMapping{HostPort: port + 1, ContainerPort: 80, Protocol: conf.TCP}
		all = append(all, forward.Socket{Mapping: m, Family: unix.AF_INET, File: null})
		if port > 0 { // so that a pair would be taken apart
			all = append(all, forward.Socket{Mapping: m, Family: unix.AF_INET6, File: null})
		}
	}
	require.NoError(t, path.Publish(conf.Key{}, forward.Target{}, all))
	close(requests)
	published, sockets := map[conf.PortMapping]bool{}, 0
	for some := range requests {
		sockets += len(some)
		for m := range mappingsOf(some) {
			require.False(t, published[m], "%s is in two requests", m)
			published[m] = true
		}
	}
	require.Equal(t, len(all), sockets)
}

func TestControlSocketAnswersGarbage(t *testing.T) {
	path := startControl(t, func(request, []*os.File) reply { t.Error("it was answered"); return reply{} })
	for _, garbage := range []string{"x\n", strings.Repeat("y", requestLimit+10) + "\n"} {
		conn, err := path.dial()
		require.NoError(t, err)
		_, err = conn.Write([]byte(garbage))
		require.NoError(t, err)
		b, _ := io.ReadAll(conn)
		if len(garbage) < requestLimit { // else the answer may be lost with the rest that was not read
			require.Contains(t, string(b), "control request: it is not JSON")
		}
		conn.Close()
	}
}

func TestControlSocketReplacesAStaleOne(t *testing.T) {
	path := Control(filepath.Join(longFolder(t), "x.sock"))
	for range 2 {
		f, err := path.Listen()
		require.NoError(t, err)
		f.Close()
	}
	_, err := path.call(request{Op: opStatus})
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	_, err = (path + "x").call(request{Op: opStatus})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// besetVariable names the socket that this process is to beset.
const besetVariable = "AMBI_TEST_BESET"

// TestBeset is the process that besets the socket of others: it keeps more connections than
// may wait, says half of a request on each, and returns when it was hung up on.
func TestBeset(t *testing.T) {
	path := Control(os.Getenv(besetVariable))
	if path == "" {
		t.Skip("the tests below run it, in a process of its own")
	}
	var held []*net.UnixConn
	for range 3 * mostWaiting {
		conn, err := path.dial()
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Time{}))
		_, _ = conn.Write([]byte(`{"op":"sta`)) // it may have hung up
		held = append(held, conn)
	}
	_, err := held[0].Read(make([]byte, 1))
	require.True(t, hungUp(err), "%v", err)
	// In one's own way.
	for _, conn := range held[:2*mostWaiting] {
		_, err := conn.Read(make([]byte, 1))
		require.True(t, hungUp(err), "%v", err)
	}
}

// TestControlSocketBeset: a process that keeps connections and says half of what it wants
// is in its own way, and not in that of another which takes its time.
func TestControlSocketBeset(t *testing.T) {
	path := startControl(t, func(request, []*os.File) reply { return reply{Status: &Status{PID: 7}} })
	conn, err := path.dial()
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Time{}))
	_, err = conn.Write([]byte(`{"op":`))
	require.NoError(t, err)

	beset := exec.Command(os.Args[0], "-test.run=^TestBeset$")
	beset.Env = append(os.Environ(), besetVariable+"="+string(path))
	said, err := beset.CombinedOutput()
	require.NoError(t, err, "%s", said)

	_, err = conn.Write([]byte(`"status"}` + "\n"))
	require.NoError(t, err)
	status, err := decodeReply(conn)
	require.NoError(t, err)
	require.Equal(t, 7, status.PID)
}

// TestWhoMakesRoomIsAnswered: what was said before one has to make room has its answer, and its
// caller is there until that closes the connection.
func TestWhoMakesRoomIsAnswered(t *testing.T) {
	w := newWaiting()
	client, first := pair(t)
	require.NoError(t, send(client, request{Op: opStatus}, nil))
	one := w.add(first, 1)
	for range mostWaiting - 1 {
		_, conn := pair(t)
		w.add(conn, 1)
	}
	added := make(chan *waiter)
	go func() {
		_, conn := pair(t)
		added <- w.add(conn, 1)
	}()
	// It is told to go: nothing more can be said.
	require.Eventually(t, func() bool { return send(client, request{}, nil) != nil }, time.Minute, time.Millisecond)
	r, _, err := readRequest(one.UnixConn)
	require.NoError(t, err)
	require.Equal(t, opStatus, r.Op)
	require.True(t, w.done(one))
	w.done(<-added)

	caller := untilHangUp(one.UnixConn)
	require.NoError(t, send(one.UnixConn, reply{Status: &Status{PID: 7}}, nil))
	status, err := decodeReply(client)
	require.NoError(t, err)
	require.Equal(t, 7, status.PID)
	require.NoError(t, caller.Err())
	client.Close()
	<-caller.Done()
}

// pair is a connection and its other end.
func pair(t *testing.T) (one, other *net.UnixConn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var conns []*net.UnixConn
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		require.NoError(t, err)
		f.Close()
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn.(*net.UnixConn))
	}
	return conns[0], conns[1]
}

// TestControlSocketTellsWhoIsThere: one that hangs up is there, one that has ended refuses.
func TestControlSocketTellsWhoIsThere(t *testing.T) {
	path, l := listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	ask := func() error {
		conn, err := path.ask(request{Op: opStatus}, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = decodeReply(conn)
		return err
	}
	require.ErrorIs(t, insist(time.Now(), ask), ErrBeset)
	l.Close()
	err := insist(time.Now().Add(time.Hour), ask)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	require.NotErrorIs(t, err, ErrBeset)
}

// TestLastLinkIsNotWaitedFor: where a keeper holds the socket and no supervisor stays, DEL of the
// last member has no minute to wait: the container's end can be removed as well.
func TestLastLinkIsNotWaitedFor(t *testing.T) {
	require.Equal(t, controlTimeout, (&request{Op: opUnlink, Link: "veth0"}).callersPatience())
	require.Equal(t, besetPatience, (&request{Op: opUnlink, Links: []int{7}}).callersPatience())
	require.Equal(t, awaitTimeout, (&request{Op: opAwait}).callersPatience())
}

// TestControlSocketOfAnotherUser: who is refused is told so.
func TestControlSocketOfAnotherUser(t *testing.T) {
	path, l := listen(t)
	go serveControl(l, os.Geteuid()+1, slog.New(slog.DiscardHandler), nil)
	_, err := path.call(request{Op: opStatus})
	unit.RequireError(t, err, types.ErrDecodingFailure, "it is of another user")
}
