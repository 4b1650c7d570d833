package plugin

import (
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// withPrevious is a result with what prev has and the result lacks behind it: a
// plugin that is given a prevResult has to pass it on (specification section 2,
// "ADD"), and neither a delegate such as bridge nor the rootless network does.
// prev is nil without one, and the result itself when nothing was added to it.
func withPrevious(prev, result *types100.Result) *types100.Result {
	if prev == nil || prev == result {
		return result
	}
	joined := *result
	joined.Interfaces, joined.IPs, joined.Routes = slices.Clone(result.Interfaces), slices.Clone(result.IPs), slices.Clone(result.Routes)
	places := make([]int, len(prev.Interfaces)) // of prev's interfaces in the joined result
	known := map[types100.Interface]int{}       // by name and sandbox alone
	nameOf := func(i *types100.Interface) types100.Interface {
		return types100.Interface{Name: i.Name, Sandbox: i.Sandbox}
	}
	for n, i := range slices.Backward(result.Interfaces) {
		known[nameOf(i)] = n // the first counts
	}
	for n, p := range prev.Interfaces {
		place, there := known[nameOf(p)]
		if !there {
			place = len(joined.Interfaces)
			known[nameOf(p)] = place
			joined.Interfaces = append(joined.Interfaces, p)
		}
		places[n] = place
	}
	seen := map[string]bool{}
	for _, ip := range result.IPs {
		seen[ip.Address.String()] = true
	}
	for _, p := range prev.IPs {
		if seen[p.Address.String()] {
			continue
		}
		seen[p.Address.String()] = true
		ip := *p
		if p.Interface != nil && *p.Interface >= 0 && *p.Interface < len(places) {
			ip.Interface = types100.Int(places[*p.Interface])
		}
		joined.IPs = append(joined.IPs, &ip)
	}
	routes := map[string]bool{}
	for _, r := range result.Routes {
		routes[r.String()] = true
	}
	for _, p := range prev.Routes {
		if !routes[p.String()] {
			routes[p.String()] = true
			joined.Routes = append(joined.Routes, p)
		}
	}
	if joined.DNS.IsEmpty() {
		joined.DNS = *prev.DNS.Copy()
	}
	return &joined
}

// ofContainer is a result without the interfaces outside of a sandbox: those of a hub are
// not on the host, where a caller would look for them (specification section 5: "sandbox"
// is empty for interfaces of the host).
func ofContainer(result *types100.Result) *types100.Result {
	only := *result
	only.Interfaces, only.IPs = nil, nil
	places := map[int]int{}
	for i, link := range result.Interfaces {
		if link != nil && link.Sandbox != "" {
			places[i] = len(only.Interfaces)
			only.Interfaces = append(only.Interfaces, link)
		}
	}
	for _, ip := range result.IPs {
		if ip != nil && ip.Interface != nil {
			place, inside := places[*ip.Interface]
			if !inside {
				continue
			}
			moved := *ip
			moved.Interface = &place
			ip = &moved
		}
		only.IPs = append(only.IPs, ip)
	}
	return &only
}
