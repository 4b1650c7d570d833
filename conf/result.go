package conf

import (
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// InterfaceOf is the container's interface of this name in a result; nil when it has
// none, or there is no result.
func InterfaceOf(result *types100.Result, ifName string) *types100.Interface {
	if result == nil {
		return nil
	}
	for _, i := range result.Interfaces {
		if i != nil && i.Name == ifName && i.Sandbox != "" {
			return i
		}
	}
	return nil
}

// AddressesOf are the addresses that a result gives the container's interface of this
// name. An address that belongs to no interface counts, as one of before version 0.3.0
// does.
func AddressesOf(result *types100.Result, ifName string) []*types100.IPConfig {
	var own []*types100.IPConfig
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		if at := ip.Interface; at != nil && *at >= 0 && *at < len(result.Interfaces) {
			if i := result.Interfaces[*at]; i != nil && (i.Name != ifName || i.Sandbox == "") {
				continue
			}
		}
		own = append(own, ip)
	}
	return own
}

// DNSFor is the DNS of a result. What told says comes from plugins that ran; where it
// is empty the network's configuration counts. Over either goes what the runtime asks
// for this container.
func (n *NetConf) DNSFor(told types.DNS) types.DNS {
	if told.IsEmpty() {
		told = *n.DNS.Copy()
	}
	asked := n.RuntimeConfig.DNS
	if len(asked.Nameservers) > 0 {
		told.Nameservers = asked.Nameservers
	}
	if len(asked.Search) > 0 {
		told.Search = asked.Search
	}
	if len(asked.Options) > 0 {
		told.Options = asked.Options
	}
	return told
}

// Before110 is a result without the keys that came with version 1.1.0, for a
// cniVersion before that: the library has one type for 1.0.0 and 1.1.0 and leaves
// nothing out. The result itself stays as it is.
func Before110(result *types100.Result, cniVersion string) *types100.Result {
	if is110, err := version.GreaterThanOrEqualTo(cniVersion, "1.1.0"); err == nil && is110 {
		return result
	}
	older := *result
	older.Interfaces, older.Routes = nil, nil
	for _, i := range result.Interfaces {
		older.Interfaces = append(older.Interfaces, &types100.Interface{Name: i.Name, Mac: i.Mac, Sandbox: i.Sandbox})
	}
	for _, r := range result.Routes {
		older.Routes = append(older.Routes, &types.Route{Dst: r.Dst, GW: r.GW})
	}
	return &older
}
