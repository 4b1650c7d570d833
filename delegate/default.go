package delegate

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/inside"
)

// Default is the chain of a network that names no delegates: bridge with its
// gateway address and masquerading, addresses from host-local with its state in
// ipamDir, and firewall where the host has that plugin, iptables and ip6tables
// (it needs both). path is CNI_PATH.
//
// Without keys of its own, a network "web" gets the bridge ambi-web and the
// subnet 10.89.N.0/24, N being made from the network's name. Two networks whose
// names give the same N need the key bridge.subnet in one of them.
//
// routed are default routes that the container has already, by another network;
// those stay, and the chain makes no second one.
func Default(bridge conf.Bridge, network, ipamDir string, path []string, routed ...netip.Prefix) ([]conf.Delegate, error) {
	first, err := bridgeDelegate(bridge, network, ipamDir, routed)
	if err != nil {
		return nil, err
	}
	chain := []conf.Delegate{first}
	if firewallUsable(path) {
		d, err := conf.ParseDelegate("firewall", json.RawMessage(`{"type":"firewall"}`))
		if err != nil {
			return nil, err
		}
		chain = append(chain, d)
	}
	return chain, nil
}

// bridgeConf and ipamConf have the keys of the plugins bridge and host-local that
// the default chain sets.
type bridgeConf struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	Bridge       string          `json:"bridge"`
	IsGateway    bool            `json:"isGateway"`
	IPMasq       bool            `json:"ipMasq"`
	MasqBackend  string          `json:"ipMasqBackend,omitempty"`
	HairpinMode  bool            `json:"hairpinMode"`
	IPAM         ipamConf        `json:"ipam"`
}

type ipamConf struct {
	Type    string              `json:"type"`
	DataDir string              `json:"dataDir"`
	Ranges  [][]subnetConf      `json:"ranges"`
	Routes  []map[string]string `json:"routes"`
}

type subnetConf struct {
	Subnet netip.Prefix `json:"subnet"`
}

func bridgeDelegate(b conf.Bridge, network, ipamDir string, routed []netip.Prefix) (conf.Delegate, error) {
	b.Name = BridgeName(b, network)
	if !b.Subnet.IsValid() {
		b.Subnet = defaultSubnet(network)
	}
	ipam := ipamConf{Type: "host-local", DataDir: ipamDir, Routes: []map[string]string{}}
	for _, subnet := range []netip.Prefix{b.Subnet, b.Subnet6} {
		if !subnet.IsValid() {
			continue
		}
		ipam.Ranges = append(ipam.Ranges, []subnetConf{{subnet}})
		if all := everywhere(subnet.Addr()); !slices.Contains(routed, all) {
			ipam.Routes = append(ipam.Routes, map[string]string{"dst": all.String()})
		}
	}
	raw, err := json.Marshal(bridgeConf{
		Type: "bridge", Capabilities: map[string]bool{"ips": true, "mac": true},
		Bridge: b.Name, IsGateway: true, IPMasq: true, MasqBackend: masqBackend(), HairpinMode: true, IPAM: ipam,
	})
	if err != nil {
		return conf.Delegate{}, fmt.Errorf("default chain: %w", err)
	}
	return conf.ParseDelegate("bridge", raw)
}

// everywhere is the destination of a default route of an address's family.
func everywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// DefaultRoutes are the destinations of the default routes that a network namespace
// has in its main table: 0.0.0.0/0, ::/0, both or none. A namespace that cannot be
// looked into has none.
func DefaultRoutes(netnsPath string) []netip.Prefix {
	handle, err := inside.Open(netnsPath)
	if err != nil {
		return nil
	}
	defer handle.Close()
	var routed []netip.Prefix
	for family, all := range map[int]netip.Prefix{netlink.FAMILY_V4: everywhere(netip.IPv4Unspecified()), netlink.FAMILY_V6: everywhere(netip.IPv6Unspecified())} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST} // Dst nil: the default
		routes, err := handle.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if err == nil && len(routes) > 0 {
			routed = append(routed, all)
		}
	}
	return routed
}

// masqBackend has bridge masquerade by nftables where program and kernel can. Its iptables chain is
// named by the container alone, so that of two interfaces of a container the first
// DEL empties the chain of both and fails ("CHAIN_DEL failed (Device or resource
// busy)"). bridge before 1.7 does not know the key and goes on with iptables.
func masqBackend() string {
	if exec.Command("nft", "list", "tables").Run() != nil {
		return ""
	}
	return "nftables"
}

// BridgeName is the link that the built-in chain makes for a network: the one of the
// key bridge.name, else ambi-<network>, or ambi-<hash> where that is longer than a link's
// name may be. The hash has 40 bits, so that two networks do not meet.
func BridgeName(b conf.Bridge, network string) string {
	if b.Name != "" {
		return b.Name
	}
	const longest = 15
	if name := conf.BridgePrefix + network; len(name) <= longest {
		return name
	}
	sum := sha256.Sum256([]byte(network))
	return conf.BridgePrefix + hex.EncodeToString(sum[:5])
}

// defaultSubnet is one of the 256 networks of 10.89.0.0/16, which Podman's range
// for its own networks starts at too: no other range is as unlikely to be in use
// outside of containers.
func defaultSubnet(network string) netip.Prefix {
	sum := sha256.Sum256([]byte(network))
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 89, sum[0], 0}), 24)
}

func firewallUsable(path []string) bool {
	if _, err := invoke.FindInPath("firewall", absolute(path)); err != nil {
		return false
	}
	for _, program := range []string{"iptables", "ip6tables"} {
		if _, err := exec.LookPath(program); err != nil {
			return false
		}
	}
	return true
}
