package bridge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// BridgeName is the name of a network's bridge: ambi-<network>, or ambi-<hash> where
// that is longer than a link's name may be. The hash has 40 bits, so that two networks
// do not meet.
func BridgeName(b conf.Bridge, network string) string {
	const longest = 15
	if b.Name != "" {
		return b.Name
	}
	if name := conf.BridgePrefix + network; len(name) <= longest {
		return name
	}
	sum := sha256.Sum256([]byte(network))
	return conf.BridgePrefix + hex.EncodeToString(sum[:5])
}

// pool is what subnets are made of where none is given: 256 networks of 10.89.0.0/16,
// which Podman's range for its own networks starts at too. No other range is as
// unlikely to be in use outside of containers.
func pool(n byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 89, n, 0}), 24)
}

// firstChoice is the subnet of the pool that a network gets when it is free.
func firstChoice(network string) byte {
	return sha256.Sum256([]byte(network))[0]
}

// user is who uses a range of addresses on the host, in words.
type user struct {
	prefix netip.Prefix
	who    string
}

// users are the ranges in use on the host, but for those of the bridge itself.
// Default routes are not among them, nor the halves that VPNs make of them.
func users(c *nlsock.Socket, bridge *link) ([]user, error) {
	links, err := listLinks(c, "listing the host's interfaces", nil, func(*link) bool { return true })
	if err != nil {
		return nil, err
	}
	byIndex := map[int]*link{}
	for _, l := range links {
		byIndex[l.index] = l
	}
	addrs, err := listAddresses(c, 0)
	if err != nil {
		return nil, err
	}
	routes, err := listRoutes(c)
	if err != nil {
		return nil, err
	}
	var all []user
	for _, a := range addrs {
		if l := byIndex[a.index]; l != nil && (bridge == nil || l.index != bridge.index) && !a.prefix.Addr().IsLinkLocalUnicast() {
			all = append(all, user{a.prefix.Masked(), l.describe() + ", which has the address " + a.prefix.String()})
		}
	}
	const broadest = 8
	for _, r := range routes {
		if (bridge == nil || r.out != bridge.index) && r.dst.Bits() >= broadest && !r.dst.Addr().IsLinkLocalUnicast() {
			who := "the host's route to " + r.dst.String()
			if l := byIndex[r.out]; l != nil {
				who += " by " + l.describe()
			}
			all = append(all, user{r.dst.Masked(), who})
		}
	}
	return all, nil
}

// describe names a link with what it is for, where that can be told.
func (l *link) describe() string {
	if network, ok := networkOf(l); ok {
		return fmt.Sprintf("bridge %s of network %q", l.name, network)
	}
	return "interface " + l.name
}

// choose is the first subnet of the pool that nobody uses, beginning with the
// network's own. Where a VPN has all of 10.0.0.0/8, a subnet in the middle of that is
// better than none: the more special route wins.
func choose(network string, all []user) (netip.Prefix, error) {
	const lan = 16 // a route as special as this is somebody's own network
	first := firstChoice(network)
	for _, narrow := range []int{0, lan} {
		for i := range 256 {
			p := pool(first + byte(i))
			if !usedBy(p, all, narrow) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: no subnet of 10.89.0.0/16 is free on this host (10.89.%d.0/24 is used by %s)", network, first, firstUser(pool(first), all).who), "give the network one with the key bridge.subnet")
}

func usedBy(p netip.Prefix, all []user, narrowest int) bool {
	return slices.ContainsFunc(all, func(u user) bool { return u.prefix.Overlaps(p) && u.prefix.Bits() >= narrowest })
}

func firstUser(p netip.Prefix, all []user) user {
	for _, u := range all {
		if u.prefix.Overlaps(p) {
			return u
		}
	}
	return user{}
}

// free says whether a subnet that was asked for may be used: not when an interface of
// the host, which may be another network's bridge, has addresses of it, or a route
// leads into it. A route that merely covers it is no obstacle.
func free(network, key string, p netip.Prefix, all []user) error {
	for _, u := range all {
		if !u.prefix.Overlaps(p) || u.prefix.Bits() < p.Bits() && strings.HasPrefix(u.who, "the host's route") {
			continue
		}
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: its subnet %s is already used by %s", network, p, u.who), "give the network another one with the key %s", key)
	}
	return nil
}

// gatewayOf is the first address of a network, which the bridge has.
func gatewayOf(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
}

// The marks of links that are ours, their aliases ("ip link" shows them): of a bridge
// the network, of a container's interface all that names the attachment. They outlive
// every record. A name too long for an alias (255 bytes) is a hash.
const mark = "ambi"

func bridgeAlias(network string) string { return shorten(mark+" "+network, network) }

func portAlias(k conf.Key) string {
	return shorten(strings.Join([]string{mark, k.Network, k.ContainerID, k.IfName}, " "), k.String())
}

func shorten(alias, name string) string {
	if len(alias) < ifAliasSize {
		return alias
	}
	return mark + " #" + digest(name, 32)
}

// networkOf reads a bridge's mark.
func networkOf(l *link) (string, bool) {
	words := strings.Fields(l.alias)
	if l.kind != "bridge" || len(words) != 2 || words[0] != mark {
		return "", false
	}
	return words[1], true
}

// keyOf reads the mark of a container's interface on the host.
func keyOf(l *link) (conf.Key, bool) {
	words := strings.Fields(l.alias)
	if l.kind != "veth" || len(words) != 4 || words[0] != mark {
		return conf.Key{}, false
	}
	return conf.Key{Network: words[1], ContainerID: words[2], IfName: words[3]}, true
}

const portPrefix = "veth"

// portName is the name of a container's interface on the host, and ifbName that of
// the interface its traffic is led through: made from the attachment's key, so that
// they are known when nothing else is.
func portName(k conf.Key) string { return portPrefix + digest(k.String(), 5) }
func ifbName(k conf.Key) string  { return "bwp" + digest(k.String(), 6) }

func digest(s string, bytes int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:bytes])
}

// macOf is the MAC address of whoever has an IPv4 address: made from it, so that who
// knew the one still knows the other when the address gets a new owner. 0a:58 is what
// CNI plugins have long used for this.
func macOf(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

// hostMAC is the MAC address of a container's interface on the host. Nobody sends to
// it; that it is given keeps udev from giving another one while we work.
func hostMAC(k conf.Key) net.HardwareAddr { return madeMAC(k.String()) }
func ifbMAC(k conf.Key) net.HardwareAddr  { return madeMAC("ifb " + k.String()) }

// isPort says whether a link's name and MAC address are made from one key, as those of a
// container's interface on the host are.
func isPort(l *link) bool {
	digest, ok := strings.CutPrefix(l.name, portPrefix)
	name, err := hex.DecodeString(digest)
	return ok && err == nil && l.kind == "veth" && len(name) == 5 && len(l.mac) == 6 &&
		l.mac[0] == unicast(name[0]) && bytes.Equal(l.mac[1:5], name[1:])
}

// madeMAC makes a unicast address of the range that is nobody's.
func madeMAC(from string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(from))
	return net.HardwareAddr{unicast(sum[0]), sum[1], sum[2], sum[3], sum[4], sum[5]}
}

func unicast(first byte) byte { return first&^1 | 2 }

// linkLocal is the IPv6 address that the kernel makes from a MAC address (RFC 4291,
// appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
