package conf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// applyOptions lets the option strings of one container (args.cni.slirp4netns,
// the spelling of Podman's --network slirp4netns:…) override the keys of the
// network.
func (n *NetConf) applyOptions() error {
	for i, option := range n.Args.Options {
		if err := n.Rootless.applyOption(fmt.Sprintf("args.cni.slirp4netns[%d]", i), option); err != nil {
			return err
		}
	}
	if n.Rootless.Network == "" {
		n.Rootless.Network = n.usualNetwork()
	}
	return nil
}

// usualNetwork is the kind of network where the configuration does not say: shared, unless it
// asks for what only a container by itself can have.
func (n *NetConf) usualNetwork() RootlessNetwork {
	if len(n.Args.Options) > 0 || n.Rootless.PortHandler == HandlerSlirp4netns {
		return NetworkPrivate
	}
	return NetworkShared
}

const optionNames = "the options are cidr, port_handler, allow_host_loopback, enable_ipv6, outbound_addr, outbound_addr6, mtu"

func (r *Rootless) applyOption(path, option string) error {
	name, value, ok := strings.Cut(option, "=")
	if !ok {
		return Mendf(Invalid(path, option, "an option is written name=value"), optionNames)
	}
	switch name {
	case "cidr":
		p, ok := parseCIDR(value)
		if !ok {
			return Invalid(path, option, "cidr is "+cidrExpected)
		}
		r.CIDR = p
	case "port_handler":
		switch value {
		case "slirp4netns":
			r.PortHandler = HandlerSlirp4netns
		case "rootlesskit", "rootlessport": // the seed's name and ours
			r.PortHandler = HandlerRootlessport
		default:
			return Invalid(path, option, "port_handler is slirp4netns or rootlessport (or rootlesskit, its older name)")
		}
	case "allow_host_loopback":
		return optionBool(path, option, value, &r.AllowHostLoopback)
	case "enable_ipv6":
		r.EnableIPv6Set = true
		return optionBool(path, option, value, &r.EnableIPv6)
	case "outbound_addr":
		if value == "" || !outboundOK(value, netip.Addr.Is4) {
			return Invalid(path, option, "outbound_addr is an IPv4 address or an interface name")
		}
		r.OutboundAddr = value
	case "outbound_addr6":
		if value == "" || !outboundOK(value, netip.Addr.Is6) {
			return Invalid(path, option, "outbound_addr6 is an IPv6 address or an interface name")
		}
		r.OutboundAddr6 = value
	case "mtu":
		mtu, err := strconv.Atoi(value)
		if err != nil || mtu < minMTU4 || mtu > maxMTU {
			return Invalid(path, option, "mtu is "+mtuExpected)
		}
		r.MTU = mtu
	default:
		return Mendf(Invalid(path, option, fmt.Sprintf("unknown option %q", name)), optionNames)
	}
	return nil
}

func optionBool(path, option, value string, target *bool) error {
	switch value {
	case "true":
		*target = true
	case "false":
		*target = false
	default:
		name, _, _ := strings.Cut(option, "=")
		return Invalid(path, option, name+" is true or false")
	}
	return nil
}
