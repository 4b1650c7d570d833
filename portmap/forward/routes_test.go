package forward

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// recorder notes what the routes ask of the namespace.
type recorder struct {
	Namespace
	calls []string
	own   netip.Addr
}

func (r *recorder) Has(ip netip.Addr) bool { return ip == r.own }

func (r *recorder) AddClient(p conf.Protocol, client netip.Addr) error {
	r.calls = append(r.calls, "add "+string(p)+" "+client.String())
	return nil
}

func (r *recorder) RemoveClient(p conf.Protocol, client netip.Addr) error {
	r.calls = append(r.calls, "remove "+string(p)+" "+client.String())
	return nil
}

func (r *recorder) take() (calls []string) {
	calls, r.calls = r.calls, nil
	return calls
}

func TestRoutesToClients(t *testing.T) {
	var (
		namespace recorder
		r         routes
		a, b      = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	)
	r.init(&namespace)
	add := func(p conf.Protocol, client netip.Addr) { require.NoError(t, r.addClient(p, client, itself)) }

	namespace.own = b
	require.ErrorIs(t, r.addClient(conf.TCP, b, itself), errOwnAddress)
	require.ErrorIs(t, r.addClient(conf.UDP, b, otherPort), errOwnAddress)
	require.Empty(t, namespace.take())
	namespace.own = netip.Addr{}

	add(conf.UDP, a)
	add(conf.UDP, a)
	add(conf.TCP, a)
	require.Equal(t, []string{"add udp 192.0.2.1", "add tcp 192.0.2.1"}, namespace.take(), "once per protocol and address")
	r.removeClient(conf.UDP, a, 0)
	require.Empty(t, namespace.take())
	r.removeClient(conf.UDP, a, 0)
	require.Equal(t, []string{"remove udp 192.0.2.1"}, namespace.take(), "at once for UDP")

	r.removeClient(conf.TCP, a, time.Second)
	end, idle := r.idleEnd()
	require.True(t, idle)
	require.Equal(t, time.Second+routeKept, end)
	r.trim(end - 1)
	add(conf.TCP, a) // comes again
	r.removeClient(conf.TCP, a, 3*time.Second)
	add(conf.TCP, b)
	r.removeClient(conf.TCP, b, 4*time.Second)
	r.trim(end)
	require.Equal(t, []string{"add tcp 2001:db8::1"}, namespace.take(), "the time begins anew")
	r.trim(3*time.Second + routeKept)
	require.Equal(t, []string{"remove tcp 192.0.2.1"}, namespace.take())
	require.NoError(t, r.close())
	require.Equal(t, []string{"remove tcp 2001:db8::1"}, namespace.take(), "what is left when the forwarder closes")
	_, idle = r.idleEnd()
	require.False(t, idle)
}
