package plugin

import (
	"slices"

	"github.com/containernetworking/cni/pkg/types"
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
	places := make([]int, len(prev.Interfaces)) // of prev's interfaces in the joined result
	for i, p := range prev.Interfaces {
		places[i] = slices.IndexFunc(joined.Interfaces, func(o *types100.Interface) bool { return o.Name == p.Name && o.Sandbox == p.Sandbox })
		if places[i] < 0 {
			places[i] = len(joined.Interfaces)
			joined.Interfaces = append(slices.Clone(joined.Interfaces), p)
		}
	}
	for _, p := range prev.IPs {
		if slices.ContainsFunc(joined.IPs, func(o *types100.IPConfig) bool { return o.Address.String() == p.Address.String() }) {
			continue
		}
		ip := *p
		if p.Interface != nil && *p.Interface >= 0 && *p.Interface < len(places) {
			ip.Interface = types100.Int(places[*p.Interface])
		}
		joined.IPs = append(slices.Clone(joined.IPs), &ip)
	}
	for _, p := range prev.Routes {
		if !slices.ContainsFunc(joined.Routes, func(o *types.Route) bool { return o.String() == p.String() }) {
			joined.Routes = append(slices.Clone(joined.Routes), p)
		}
	}
	if joined.DNS.IsEmpty() {
		joined.DNS = *prev.DNS.Copy()
	}
	return &joined
}
