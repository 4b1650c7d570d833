package supervisor

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// TestNothingChangesDuringAReplacement: what is asked meanwhile waits, and is asked for again of the
// supervisor that there is then; what was asked before is waited for, but for verbs.
func TestNothingChangesDuringAReplacement(t *testing.T) {
	for _, op := range []string{opAddPort, opRemovePort, opOpen, opLeave, opUnlink, opNames, opStandIn, opVerb} {
		t.Run(op, func(t *testing.T) {
			s := &supervisor{hub: &hub{}}
			end := s.begin(op)
			require.Equal(t, op == opVerb, s.changing.TryLock())
			require.Equal(t, op == opVerb, s.hub.verbs.Load() == 1)
			if op == opVerb {
				s.changing.Unlock()
			}
			end()
			require.Zero(t, s.hub.verbs.Load())
			s.changing.Lock()
			answered := make(chan reply)
			go func() { answered <- s.answer(request{Op: op}, nil) }()
			select {
			case <-answered:
				require.Fail(t, "answered")
			case <-time.After(10 * time.Millisecond):
			}
			s.replaced.Store(true)
			s.changing.Unlock()
			require.True(t, (<-answered).hangUp)
			require.Zero(t, s.hub.verbs.Load())
		})
	}
}

// here has sockets made where the test is.
type here struct{ forward.Namespace }

func (here) AddPort(conf.Protocol, uint16, forward.Target) error    { return nil }
func (here) RemovePort(conf.Protocol, uint16, forward.Target) error { return nil }

func (here) Socket(domain, typ, proto int) (int, error) { return unix.Socket(domain, typ, proto) }

// TestPortsOfWhoHasEnded: an ADD that is killed while it asks for a port has none, as a DEL that came
// before the answer has found none to take back.
func TestPortsOfWhoHasEnded(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	forwarder, err := forward.New(forward.Config{Namespace: here{}, Logger: log})
	require.NoError(t, err)
	defer forwarder.Close()
	h := &hub{log: log, forwarder: forwarder, twin: newTwin("web", log), published: map[conf.Key][]Socket{}, targets: map[conf.Key]forward.Target{}}
	loopback := netip.MustParseAddr("127.0.0.1")
	ask := func(caller context.Context) (uint16, error) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		port := l.Addr().(*net.TCPAddr).AddrPort().Port()
		file, err := l.(*net.TCPListener).File()
		require.NoError(t, err)
		require.NoError(t, l.Close())
		m := conf.PortMapping{HostPort: port, ContainerPort: 80, Protocol: conf.TCP, HostIP: loopback}
		return port, h.publishFor(request{
			Member: &conf.Key{Network: "web", ContainerID: "a", IfName: "eth0"}, Target: &forward.Target{Container4: netip.MustParseAddr("10.0.2.100"), SourceIP: conf.SourceGateway, Gateway4: netip.MustParseAddr("10.0.2.2")},
			Sockets: []Socket{{Mapping: m, Family: unix.AF_INET}}, caller: caller,
		}, []*os.File{file})
	}
	live, end := context.WithCancel(t.Context())
	port, err := ask(live)
	require.NoError(t, err)
	require.ErrorContains(t, bindable(port), "in use")
	end()
	port, err = ask(live)
	require.ErrorContains(t, err, "has ended")
	require.NoError(t, bindable(port))
	require.Len(t, forwarder.Stats(), 1)
	h.published, h.targets = map[conf.Key][]Socket{}, map[conf.Key]forward.Target{}
	_, err = ask(live)
	require.ErrorContains(t, err, "has ended")
	require.Empty(t, h.published)
	require.Empty(t, h.targets)
}

func bindable(port uint16) error {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err == nil {
		l.Close()
	}
	return err
}
