package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// The control socket speaks one JSON request and one JSON reply a connection.

// The operations of a request.
const (
	opStatus     = "status"
	opCheck      = "check"
	opStop       = "stop"
	opAddPort    = "port-add" // the bound sockets come along (SCM_RIGHTS), IPv4 before IPv6
	opRemovePort = "port-remove"
	opOpen       = "open"    // hands out files of the hub's namespace
	opAwait      = "await"   // answers when the driver is there
	opLeave      = "leave"   // takes back all ports of a member
	opUnlink     = "unlink"  // removes interfaces
	opNames      = "names"   // serves names at the bridge's addresses
	opReplace    = "replace" // has another program, which comes along, take its place

	// Of a hub in which plugins run.
	opStandIn = "stand-in" // hands out files of the namespace in place of a member's
	opVerb    = "verb"     // runs a CNI verb, as root does, for a member
)

type request struct {
	Op   string            `json:"op"`
	Port *conf.PortMapping `json:"port,omitempty"` // to take back, or for the driver to publish
	// Member that the request is about, and where its ports lead. There is a hub with a single
	// one, which need not be named.
	Member *conf.Key       `json:"member,omitempty"`
	Target *forward.Target `json:"target,omitempty"`
	Verb   *Verb           `json:"verb,omitempty"`
	// Link is the hub's end of the link to the member, and Addresses are the member's.
	Link      string       `json:"link,omitempty"`
	Links     []int        `json:"links,omitempty"` // indexes of interfaces to remove
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Sockets describe those that come along for the ports of a member.
	Sockets []Socket `json:"sockets,omitempty"`
	// Servers are where names are served.
	Servers []netip.Addr `json:"servers,omitempty"`

	caller context.Context //nolint:containedctx // ends with the connection on which the request came
}

type reply struct {
	Error  *types.Error `json:"error,omitempty"`
	Status *Status      `json:"status,omitempty"`
	Ran    *Ran         `json:"ran,omitempty"`

	files   []*os.File // that go along, and are closed then
	leaving bool       // as in Status
	hangUp  bool       // instead of an answer
}

// TraceVariables are those that a runtime's trace comes in (OpenTelemetry, OTEP 258).
var TraceVariables = []string{"TRACEPARENT", "TRACESTATE", "BAGGAGE"}

// Verb is a CNI verb that runs inside a hub.
type Verb struct {
	Command string          `json:"command"`
	Path    string          `json:"path"`
	Args    string          `json:"args"`
	Config  json.RawMessage `json:"config"`
	// Trace are the variables of TraceVariables that the caller has.
	Trace map[string]string `json:"trace,omitempty"`
	Gone  bool              `json:"gone,omitempty"` // the container is: there is nothing to stand in for it
}

// Ran is what a verb did.
type Ran struct {
	Out     []byte `json:"out"`
	Failed  bool   `json:"failed,omitempty"`
	StandIn string `json:"standIn"` // the CNI_NETNS that it had
}

// PortStats are the counters of a published port. Those of a driver that publishes
// itself stay 0: it does not count.
type PortStats = forward.PortStats

// PortCounters are those of a PortStats without its mapping.
type PortCounters = forward.PortCounters

// Status is what a supervisor says of itself.
type Status struct {
	PID    int `json:"pid"`
	Keeper int `json:"keeper,omitempty"` // its process; 0 while there is none
	// Leaving says that another takes its place as soon as it has said so.
	Leaving bool         `json:"leaving,omitempty"`
	Since   time.Time    `json:"since"`
	Driver  DriverStatus `json:"driver"`
	MAC     string       `json:"mac"`
	// Interface is nil while the interface is not there.
	Interface *InterfaceStats `json:"interface,omitempty"`
	Ports     []PortStats     `json:"ports"`
	// FlowsRefused are those that a member of a hub could not begin, having as many as it may.
	FlowsRefused uint64 `json:"flowsRefused,omitempty"`
	// WayOut is nil where nobody counts.
	WayOut *WayOut `json:"wayOut,omitempty"`
}

// WayOut counts what a member sends by the driver, and gets by it. What nobody counts is nil.
type WayOut struct {
	BytesOut uint64  `json:"bytesOut"`
	BytesIn  uint64  `json:"bytesIn"`
	Active   *int64  `json:"active,omitempty"` // connections and UDP flows now
	Total    *uint64 `json:"total,omitempty"`  // and in all
	// Refused were refused by their destinations, or are closed to containers; for Dropped
	// there was no room.
	Refused *uint64 `json:"refused,omitempty"`
	Dropped *uint64 `json:"dropped,omitempty"`
}

// InterfaceStats are the kernel's counters of the container's interface. Received is
// what came to the container.
type InterfaceStats struct {
	RxBytes   uint64 `json:"rxBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxBytes   uint64 `json:"txBytes"`
	TxPackets uint64 `json:"txPackets"`
	TxErrors  uint64 `json:"txErrors"`
	TxDropped uint64 `json:"txDropped"`
}

// StatsOf are the counters of a link; nil when the kernel gave none.
func StatsOf(link netlink.Link) *InterfaceStats {
	s := link.Attrs().Statistics
	if s == nil {
		return nil
	}
	return &InterfaceStats{
		RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
		TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
	}
}

// reversed are the counters of the other end of a link.
func (s *InterfaceStats) reversed() *InterfaceStats {
	if s == nil {
		return nil
	}
	return &InterfaceStats{
		RxBytes: s.TxBytes, RxPackets: s.TxPackets, RxErrors: s.TxErrors, RxDropped: s.TxDropped,
		TxBytes: s.RxBytes, TxPackets: s.RxPackets, TxErrors: s.RxErrors, TxDropped: s.RxDropped,
	}
}

// DriverStatus is the state of the driver.
type DriverStatus struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"` // 0 while it is down
	Restarts int    `json:"restarts"`
	Error    string `json:"error,omitempty"` // why the last one ended
	// OpenFiles are those that it has, most of them flows, and MostFiles those that it may
	// have. Both are 0 where they are not known.
	OpenFiles int `json:"openFiles,omitempty"`
	MostFiles int `json:"mostFiles,omitempty"`
}

// The bounds of one exchange.
const (
	controlTimeout = 10 * time.Second
	awaitTimeout   = 3 * time.Minute // for a driver, see readyPatience of rootless/driver
	verbTimeout    = time.Hour       // delegates have as long as they need
	requestLimit   = 4 << 20         // a configuration with thousands of ports
	replyLimit     = 64 << 20        // every port has its counters in it
	filesAtOnce    = 250             // the kernel passes on 253 (SCM_MAX_FD)
)

// LargestConfig is how many bytes the configuration of a Verb may have: the rest of the
// request needs less than a MiB.
const LargestConfig = requestLimit - 1<<20

// server answers the callers of a control socket.
type server struct {
	log    *slog.Logger
	answer func(request, []*os.File) reply

	waiting *waiting
	pace    pace
	lasting *lasting
	brief   chan struct{} // has those that are answered
	all     chan struct{} // and all that are there
}

// serveControl answers callers of the given uid until the listener is closed.
func serveControl(l *net.UnixListener, owner int, log *slog.Logger, answer func(request, []*os.File) reply) {
	s := &server{
		log: log, answer: answer, waiting: newWaiting(), lasting: newLasting(),
		brief: make(chan struct{}, briefMost), all: make(chan struct{}, connectionsMost),
	}
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("control socket", "error", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors: the next one may do
			continue
		}
		peer, err := peerCredentials(conn)
		if err != nil || int(peer.Uid) != owner {
			log.Warn("control socket: refused a caller", "peer", peer, "error", err)
			_ = send(conn, reply{Error: conf.Errorf(types.ErrDecodingFailure, "control request: it is of another user")}, nil)
			conn.Close()
			continue
		}
		if wait := s.pace.wait(time.Now()); wait > 0 {
			log.Warn("control socket: callers wait, as they ask too often", "process", peer.Pid)
			time.Sleep(wait)
		}
		s.all <- struct{}{}
		one := s.waiting.add(conn, peer.Pid)
		go s.serve(one)
	}
}

func (s *server) serve(conn *waiter) {
	defer func() { <-s.all }()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	r, files, err := readRequest(conn.UnixConn)
	if goes := s.waiting.done(conn); err != nil && (goes || errors.Is(err, errHungUp)) {
		return // it had to make room, and will ask again, or looked whether we are here
	}
	out := reply{}
	if err != nil {
		out.Error = conf.Errorf(types.ErrDecodingFailure, "control request: %v", err)
	} else {
		out = s.inTurn(conn, r, files)
	}
	if out.hangUp {
		return
	}
	if err := send(conn.UnixConn, out, out.files); err != nil {
		s.log.Warn("control socket: reply", "error", err)
	}
	closeAll(out.files)
}

// inTurn answers a request when it may.
func (s *server) inTurn(conn *waiter, r request, files []*os.File) reply {
	if r.lasts() {
		switch s.lasting.begin(conn.process) {
		case tooManyOfOne:
			closeAll(files)
			return reply{Error: conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "the supervisor is at work for process %d, as often as it may be for one at once", conn.process), "call again when some of that has come to its end")}
		case tooMany:
			closeAll(files)
			return reply{Error: conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "the supervisor is at work for as many verbs as it may be at once, and more wait"), "call again when some of them have come to their end")}
		}
		defer s.lasting.end(conn.process)
		if gone(conn.UnixConn) {
			closeAll(files)
			return reply{hangUp: true} // it is not waited for any more, and may have been followed by DEL
		}
	} else {
		s.brief <- struct{}{}
		defer func() { <-s.brief }()
	}
	_ = conn.SetDeadline(time.Now().Add(r.patience()))
	r.caller = untilHangUp(conn.UnixConn)
	return s.answer(r, files)
}

// lasts says that the answer may take long.
func (r *request) lasts() bool { return r.Op == opAwait || r.Op == opVerb }

// untilHangUp ends when the caller closes the connection, or we do. It does not read, which
// would end at once on a connection that was to make room.
func untilHangUp(conn *net.UnixConn) context.Context {
	ctx, hungUp := context.WithCancel(context.Background())
	go func() {
		defer hungUp()
		if raw, err := conn.SyscallConn(); err == nil {
			_ = raw.Read(closed)
		}
	}()
	return ctx
}

// gone says that the caller has closed the connection.
func gone(conn *net.UnixConn) (yes bool) {
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { yes = closed(fd) })
	}
	return yes || err != nil
}

// closed says that nobody has the other end of a socket any more.
func closed(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&unix.POLLHUP != 0
}

// patience is how long an answer may take.
func (r *request) patience() time.Duration {
	switch r.Op {
	case opAwait:
		return awaitTimeout
	case opVerb:
		return verbTimeout
	}
	return controlTimeout
}

// send writes a message as one line, with files.
func send(conn *net.UnixConn, message any, files []*os.File) error {
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(append(line, '\n'), oob, nil)
	if err == nil && n <= len(line) {
		_, err = conn.Write(append(line, '\n')[n:])
	}
	return err
}

func peerCredentials(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, cerr)
}

// readRequest reads one line and the descriptors that come with its first byte.
// It owns the files only when it returns no error.
func readRequest(conn *net.UnixConn) (r request, files []*os.File, err error) {
	line, files, err := receive(conn)
	if err == nil {
		r, err = decodeRequest(line)
	}
	if err != nil {
		closeAll(files)
		return r, nil, err
	}
	return r, files, nil
}

// errHungUp is of a connection that ends before its first byte.
var errHungUp = errors.New("the other end has hung up")

// receive reads the begin of a message, with which its files come, and gives the rest to
// read.
func receive(conn *net.UnixConn) (message io.Reader, files []*os.File, err error) {
	first := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*filesAtOnce))
	n, oobn, flags, _, err := conn.ReadMsgUnix(first, oob)
	if errors.Is(err, io.EOF) {
		return nil, nil, errHungUp
	}
	if err != nil {
		return nil, nil, err
	}
	if files, err = receivedFiles(oob[:oobn]); err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("more descriptors than a message has")
	}
	return io.MultiReader(bytes.NewReader(first[:n]), conn), files, err
}

// decodeRequest reads one JSON line of bounded length.
func decodeRequest(from io.Reader) (r request, err error) {
	line, err := bufio.NewReader(io.LimitReader(from, requestLimit)).ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("it is not one line of at most %d bytes: %w", requestLimit, err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("it is not JSON: %w", err)
	}
	return r, nil
}

func receivedFiles(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "socket"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
