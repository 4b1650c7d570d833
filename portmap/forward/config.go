package forward

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ambi-cni/ambi/conf"
)

// Namespace is what rootlessport needs of the container's network namespace.
// Its methods may be called from several goroutines at once.
type Namespace interface {
	// Socket is socket(2) inside the container's namespace.
	Socket(domain, typ, proto int) (int, error)

	// Has says whether an address is local inside: one that an interface of the
	// container has, or a broadcast address of its networks. It is called with the
	// address of a client that is about to be preserved, before AddClient.
	Has(ip netip.Addr) bool

	// AddClient routes what is sent to the client from a published port of the
	// protocol back into the namespace: "local CLIENT/32 dev lo src CONTAINER". For
	// TCP the route says "congctl reno" (see congestion.go). It is called once per
	// (protocol, address), before the first packet of its first flow or connection.
	AddClient(protocol conf.Protocol, client netip.Addr) error

	// RemoveClient is the reverse of AddClient, called after the address's last flow
	// has expired, or a moment after its last connection has ended.
	RemoveClient(protocol conf.Protocol, client netip.Addr) error

	// AddPort has what a target sends from this port routed by the table of its protocol,
	// which holds the clients of AddClient: "ip rule add iif lo ipproto X sport P
	// lookup T". It is called once per (protocol, containerPort, target).
	AddPort(protocol conf.Protocol, containerPort uint16, of Target) error

	// RemovePort is the reverse of AddPort, called after the port's last listener
	// and last connection have gone.
	RemovePort(protocol conf.Protocol, containerPort uint16, of Target) error
}

// Enterer is a [Namespace] that threads can move into. A forwarder then makes its
// sockets without asking another thread, which halves the cost of a connection's
// set-up.
type Enterer interface {
	// Enter moves the calling thread, which its goroutine has locked, into the
	// container's network namespace for good (setns(2)). It is called for every
	// worker during the first Add; after an error the worker uses Socket.
	Enter() error
}

// Target is a container that ports lead to.
type Target struct {
	// Container4 and Container6 are the container's addresses; zero when it has
	// none of that family. Clients of a missing family reach the other one.
	Container4, Container6 netip.Addr

	// Gateway4 and Gateway6 are the source addresses for clients that cannot be
	// preserved. Each is needed where the container's address is.
	Gateway4, Gateway6 netip.Addr

	// Subnet4 and Subnet6 are the container's networks: a client inside one is
	// given the gateway's address, as the service could not answer it otherwise.
	Subnet4, Subnet6 netip.Prefix

	// SourceIP is what the service sees; empty means preserve.
	SourceIP conf.SourceIP

	// Away4 and Away6 say that the container's default route of that family leads
	// elsewhere: an answer to a client's own address would not come back.
	Away4, Away6 bool
}

// Config says what to forward to, and how.
type Config struct {
	Namespace Namespace

	Target // of [Forwarder.Add]; zero where only AddTo is used

	// Logger gets what an operator must know; nil discards it.
	Logger *slog.Logger

	// Zero values mean the defaults below.
	ConnectTimeout   time.Duration // TCP, for the service to answer: 15 s
	GoneTimeout      time.Duration // TCP, without any traffic, to ask whether the service is there; then for its last bytes: 2 min
	UnrepliedTimeout time.Duration // UDP flow without a reply yet: 30 s
	RepliedTimeout   time.Duration // UDP flow after the first reply: 180 s
	AcceptPause      time.Duration // after descriptors or memory ran out: 100 ms
	MaxFlows         int           // UDP flows of all ports together: 16384, and three quarters of the descriptors
	MaxPipes         int           // pipes for bulk data: 64, fewer where RLIMIT_NOFILE is small; negative: always copy
	MaxWorkers       int           // as many as processors (GOMAXPROCS), at most 8
}

const (
	defaultConnectTimeout   = 15 * time.Second
	defaultGoneTimeout      = 2 * time.Minute
	defaultUnrepliedTimeout = 30 * time.Second  // nf_conntrack_udp_timeout
	defaultRepliedTimeout   = 180 * time.Second // nf_conntrack_udp_timeout_stream was 180 s until Linux 5.1
	defaultAcceptPause      = 100 * time.Millisecond
	defaultMaxFlows         = 16384
	defaultMaxPipes         = 64
	mostWorkers             = 8
)

func orDefault[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}

func (c *Config) withDefaults() Config {
	d := *c
	d.Logger = orDefault(d.Logger, slog.New(slog.DiscardHandler))
	d.ConnectTimeout = orDefault(d.ConnectTimeout, defaultConnectTimeout)
	d.GoneTimeout = orDefault(d.GoneTimeout, defaultGoneTimeout)
	d.UnrepliedTimeout = orDefault(d.UnrepliedTimeout, defaultUnrepliedTimeout)
	d.RepliedTimeout = orDefault(d.RepliedTimeout, defaultRepliedTimeout)
	d.AcceptPause = orDefault(d.AcceptPause, defaultAcceptPause)
	d.MaxFlows = orDefault(d.MaxFlows, affordableFlows())
	d.MaxPipes = orDefault(d.MaxPipes, affordablePipes())
	d.MaxWorkers = orDefault(d.MaxWorkers, affordableWorkers())
	return d
}

func (c *Config) validate() error {
	if c.Namespace == nil {
		return fmt.Errorf("the container's network namespace is missing")
	}
	if c.Target == (Target{}) {
		return nil
	}
	return c.Target.validate()
}

func (c *Target) validate() error {
	if !c.Container4.IsValid() && !c.Container6.IsValid() {
		return fmt.Errorf("the container has neither an IPv4 nor an IPv6 address to forward to")
	}
	for _, f := range []struct{ container, gateway netip.Addr }{{c.Container4, c.Gateway4}, {c.Container6, c.Gateway6}} {
		if err := validFamily(f.container, f.gateway); err != nil {
			return err
		}
	}
	return nil
}

// validFamily: delivering to the container's loopback would let its service
// take the client for a local one.
func validFamily(container, gateway netip.Addr) error {
	if !container.IsValid() {
		return nil
	}
	if container.IsLoopback() || !container.IsGlobalUnicast() {
		return fmt.Errorf("the container's address %s is not one that can be forwarded to", container)
	}
	if !gateway.IsValid() || gateway.Is4() != container.Is4() || !gateway.IsGlobalUnicast() || gateway == container {
		return fmt.Errorf("gateway address %q for the container's %s: it is another unicast address of the same family", gateway, container)
	}
	return nil
}
