package driver

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
	way "github.com/ambi-cni/ambi/rootless/relay"
)

// relay is our own (rootless/relay): no program and no process, but part of the supervisor.
type relay struct{}

func (relay) Name() string    { return "relay" }
func (relay) Package() string { return "" }

func (relay) Find(string, string) (Program, error) { return relayProgram{}, nil }
func (relay) Inspect(string) (*Info, error)        { return &Info{}, nil }

func (relay) CheckHost() error { return checkTun(relay{}.Name()) }

func (relay) Publishes(conf.PortHandler) bool { return false }

func (relay) Publishable(m conf.PortMapping) (conf.PortMapping, error) {
	return m, conf.Unsupported("rootless.portHandler", m.Protocol, "the driver relay publishes no ports")
}

func (relay) publisher(*Command, netip.Addr) Publisher { return nil }

type relayProgram struct{}

// The options of a relay, as a Command has them.
const (
	optionNetwork  = "--cidr="
	optionNetwork6 = "--cidr6="
	optionLoopback = "--host-loopback"
	optionNoDNS    = "--disable-dns"
)

func (relayProgram) Command(r conf.Rootless, ifName string) (*Command, error) {
	args := []string{optionNetwork + r.CIDR.String()}
	if ipv6, err := ipv6Usable(&r, true); err != nil {
		return nil, err
	} else if ipv6 {
		args = append(args, optionNetwork6+ipv6Network.String())
	}
	if r.AllowHostLoopback {
		args = append(args, optionLoopback)
	}
	if r.DisableDNS {
		args = append(args, optionNoDNS)
	}
	c := &Command{
		Driver: relay{}.Name(), Path: relay{}.Name(), Args: args, IfName: ifName,
		Outbound4: r.OutboundAddr, Outbound6: r.OutboundAddr6,
	}
	_, _, err := c.outbound()
	return c, err
}

func (relay) ofHost(*Command) string { return "" }

func (relayProgram) Plan(a *conf.Attachment) (*plan.Interface, error) {
	return planFor(a, relay{}.Name(), true, true)
}

func (relay) move(c *Command, network netip.Prefix) {
	for i, arg := range c.Args {
		if strings.HasPrefix(arg, optionNetwork) {
			c.Args[i] = optionNetwork + network.String()
		}
	}
}

// relayConfig reads the options of a Command.
func relayConfig(c *Command) (config way.Config, err error) {
	dns := true
	for _, arg := range c.Args {
		option, value, _ := strings.Cut(arg, "=")
		switch option + "=" {
		case optionNetwork:
			config.IPv4.Network, err = netip.ParsePrefix(value)
		case optionNetwork6:
			config.IPv6.Network, err = netip.ParsePrefix(value)
		case optionLoopback + "=":
			config.AllowHostLoopback = true
		case optionNoDNS + "=":
			dns = false
		default:
			err = fmt.Errorf("it is not known")
		}
		if err != nil {
			return config, fmt.Errorf("option %s of the driver relay: %w", arg, err)
		}
	}
	for _, n := range []*way.Network{&config.IPv4, &config.IPv6} {
		if !n.Network.IsValid() {
			continue
		}
		n.Gateway = hostNumber(n.Network, gatewayNumber)
		if dns {
			n.DNS = hostNumber(n.Network, dnsNumber)
		}
	}
	return config, nil
}

func (relay) start(c *Command, files Files, log *slog.Logger) (Process, error) {
	return startRelay(c, nil, files, log)
}

// adopt goes on with the interface, in which packets wait. Connections have ended.
func (relay) adopt(c *Command, survivor Survivor, files Files, log *slog.Logger) (Process, error) {
	if len(survivor.Files) == 0 {
		return nil, errNoDriver
	}
	return startRelay(c, survivor.Files, files, log)
}

// startRelay starts one with what another has left, nil: nothing.
func startRelay(c *Command, kept []*os.File, files Files, log *slog.Logger) (Process, error) {
	config, err := relayConfig(c)
	if err != nil {
		return nil, err
	}
	running := &relaying{done: make(chan struct{})}
	if err := running.Follow(c); err != nil {
		return nil, err
	}
	config.Hub, config.IfName, config.Logger, config.From, config.Kept = files.Netns, c.IfName, log, running.from, kept
	if running.relay, err = way.Start(config); err != nil {
		return nil, err
	}
	return running, nil
}

// relaying is a relay as supervisors know drivers. It is of their own process, and lives
// as long as that.
type relaying struct {
	relay *way.Relay
	once  sync.Once
	done  chan struct{}

	addresses atomic.Pointer[[2]netip.Addr] // to go out from, IPv4 and IPv6; invalid: any
}

var (
	_ Process = (*relaying)(nil)
	_ Counter = (*relaying)(nil)
	_ Drainer = (*relaying)(nil)
)

// Follow has what comes leave from the addresses of this moment. After an error it is those
// of before.
func (r *relaying) Follow(c *Command) error {
	from4, from6, err := c.outbound()
	if err != nil {
		return err
	}
	var addresses [2]netip.Addr
	addresses[0], _ = netip.ParseAddr(from4)
	addresses[1], _ = netip.ParseAddr(from6)
	r.addresses.Store(&addresses)
	return nil
}

func (r *relaying) from(ipv6 bool) netip.Addr {
	if ipv6 {
		return r.addresses.Load()[1]
	}
	return r.addresses.Load()[0]
}

func (r *relaying) Stats() []MemberStats          { return r.relay.Stats() }
func (r *relaying) Forget(addresses []netip.Addr) { r.relay.Forget(addresses) }

func (r *relaying) Survivor() *Survivor {
	return &Survivor{Files: r.relay.Keep()}
}

func (r *relaying) Drain()           { r.relay.Drain() }
func (r *relaying) Connections() int { return r.relay.Connections() }

func (r *relaying) AwaitReady() error      { return nil }
func (r *relaying) PID() int               { return os.Getpid() }
func (r *relaying) Ended() <-chan struct{} { return r.done }
func (r *relaying) Ending() string         { return "the driver relay was closed" }

func (r *relaying) Dismiss() {
	r.once.Do(func() {
		_ = r.relay.Close() // nothing of it is outside of the process
		close(r.done)
	})
}

func (r *relaying) Stop() {
	r.Dismiss()
	<-r.done
}
