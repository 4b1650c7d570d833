package delegate

import (
	"context"
	"encoding/json"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/inside"
)

// Del runs DEL of every delegate in reverse order, each with the final result of
// ADD (nil when it is not known), and returns all their errors as one.
//
// The first delegate, which takes the interface down and lets the address go, is
// not called when another one failed: rules bound to the address would then
// apply to its next owner (cni#924). It is called when another one's binary is
// missing, because that binary may never come back, and keeping every address for
// it would use up the subnet; the error says that its undo is still due.
//
// Without a path to the container's namespace it is looked for by its interface.
// When it is gone, or does not have the interface of the result any more, the
// delegates get a stand-in namespace that has one, with the addresses and the MAC
// address of the result.
func (c *Chain) Del(ctx context.Context, result *types100.Result) error {
	if len(c.Delegates) == 0 {
		return nil
	}
	result = c.trueResult(result)
	place, errs := c.place(result)
	defer place.Close()
	failed := len(errs) > 0
	for i, d := range slices.Backward(c.Delegates) {
		if i == 0 && failed {
			errs = append(errs, conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: not called, and the address not released, because of these errors", d.Type), "repeat DEL when they are mended"))
			break
		}
		if _, err := c.find(d.Type); err != nil {
			errs = append(errs, annotate(d.Type, err))
			continue
		}
		if err := c.delOne(ctx, d, place.netnsFor(d.Type), result); err != nil {
			errs = append(errs, annotate(d.Type, err))
			failed = true
		}
	}
	if len(errs) == 0 {
		c.releaseDamaged(ctx, result)
	}
	return join(errs)
}

// delOne runs DEL of one delegate. That what it was to remove is not there is no
// error ("Plugins should generally complete a DEL action without error even if
// some resources are missing"), but bridge and ptp up to 1.1 stop at the first
// address whose rules are missing; then each address has a stand-in of its own.
func (c *Chain) delOne(ctx context.Context, d conf.Delegate, netns string, result *types100.Result) error {
	_, _, err := c.call(ctx, d, request{verb: "DEL", netns: netns, prev: result}, "")
	if err == nil && netns == "" {
		return c.delIPAM(ctx, d, result)
	}
	if !saysAbsent(err) {
		return err
	}
	c.log().Debug("a rule was gone already", "type", d.Type, "error", err)
	if _, addresses := lookOf(c.Attachment.IfName, result); len(addresses) < 2 {
		return nil
	}
	for _, ip := range result.IPs[:min(len(result.IPs), mostEntries)] {
		if err := c.delAddress(ctx, d, ip, result); err != nil && !saysAbsent(err) {
			return err
		}
	}
	return nil
}

// delIPAM lets the address of a delegate go that was given no namespace:
// host-device then does not call its IPAM plugin. IPAM plugins read the whole
// configuration of the plugin that calls them, and their DEL may be repeated.
func (c *Chain) delIPAM(ctx context.Context, d conf.Delegate, result *types100.Result) error {
	var ipam struct{ Type string }
	if raw := value(d.Raw, "ipam"); raw == nil || json.Unmarshal(raw, &ipam) != nil || ipam.Type == "" {
		return nil
	}
	if _, _, err := c.call(ctx, ipamOf(d, ipam.Type), request{verb: "DEL", prev: result}, ""); err != nil {
		return annotate(ipam.Type, err)
	}
	return nil
}

// ipamOf is a delegate's IPAM plugin as one that is called by itself.
func ipamOf(d conf.Delegate, plugin string) conf.Delegate {
	return conf.Delegate{Type: plugin, Capabilities: d.Capabilities, Raw: d.Raw}
}

// delAddress runs DEL of one delegate in a stand-in with a single address.
func (c *Chain) delAddress(ctx context.Context, d conf.Delegate, ip *types100.IPConfig, result *types100.Result) error {
	only := *result
	only.IPs = []*types100.IPConfig{ip}
	stand, err := newStandIn(c.Attachment.IfName, &only)
	if err != nil {
		return err
	}
	defer stand.Close()
	_, _, err = c.call(ctx, d, request{verb: "DEL", netns: stand.path, prev: result}, "")
	return err
}

// place is the namespace that DEL works in. An error means that a stand-in was
// needed and could not be made; the place is then an empty CNI_NETNS.
func (c *Chain) place(result *types100.Result) (*place, []*types.Error) {
	a := c.Attachment
	if c.stray != nil {
		return &place{netns: pathOf(c.stray)}, nil
	}
	if !c.NetnsGone && a.NetnsPath != "" && (c.NetnsKnown || !c.hasAnothers(a.NetnsPath, result)) {
		if c.worksIn(a.NetnsPath, result) {
			return &place{netns: a.NetnsPath}, nil
		}
	} else if f := c.locate(result, c.NetnsInode); f != nil {
		c.log().Debug("DEL works in a namespace that was found by its interface", "netns", a.NetnsPath, "found", f.Name())
		return &place{netns: pathOf(f), found: f}, nil
	}
	stand, err := newStandIn(a.IfName, result)
	if err != nil {
		return &place{}, []*types.Error{conf.Errorf(conf.ErrNetwork, "stand-in for the namespace %q, which is gone: %v", a.NetnsPath, err)}
	}
	c.log().Debug("DEL works in a stand-in namespace", "netns", a.NetnsPath, "standIn", stand.path)
	return &place{netns: stand.path, stand: stand}, nil
}

// worksIn says whether DEL can learn from this namespace what there is to remove.
// It cannot when the interface went before the rules did: the container deleted
// it, or an earlier DEL was killed in between.
func (c *Chain) worksIn(netns string, result *types100.Result) bool {
	if !isNamespace(netns) {
		return false
	}
	link, err := inside.Link(netns, c.Attachment.IfName)
	if err != nil {
		return true // the delegates may be able to look where we are not
	}
	_, addresses := lookOf(c.Attachment.IfName, result)
	return link != nil || len(addresses) == 0
}

// place is a network namespace for delegates, the container's or a stand-in.
type place struct {
	netns string
	stand *standIn // nil: the container's own
	found *os.File // the container's own, which we opened; nil: not we
}

// netnsFor is CNI_NETNS for a delegate. host-device gives the interface back to
// the host, which the kernel has done already when the namespace is gone; it
// would try to do so with ours and fail for ever (containerd#10507).
func (p *place) netnsFor(delegateType string) string {
	if p.stand != nil && delegateType == "host-device" {
		return ""
	}
	return p.netns
}

func (p *place) Close() {
	if p.stand != nil {
		p.stand.Close()
	}
	if p.found != nil {
		p.found.Close()
	}
}
