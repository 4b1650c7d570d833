package link

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// Address is one of an interface.
type Address struct {
	netip.Prefix
	Link int // index of the interface
}

// Addresses are those of an interface, or with 0 all of the place. A container may have more
// than are looked at, which is an error.
func (p *Place) Addresses(index int) (addresses []Address, err error) {
	list, err := p.list(ask("listing the addresses", unix.RTM_NEWADDR, nlsock.IfAddrMsg(netip.Prefix{}, 0, index)))
	for _, m := range list {
		addresses = append(addresses, Address{m.address(), int(number(m.Data[atIndex:]))})
	}
	return addresses, err
}

// HasDefault says whether what leaves by an interface goes over that gateway, without a list
// of what there is. A route that is more special than the default is the container's own
// business.
func (p *Place) HasDefault(index int, gateway netip.Addr) (bool, error) {
	header := routeHeader(nlsock.FamilyOf(gateway))
	question := message{Kind: unix.RTM_NEWROUTE, Data: header, What: "the default route"}
	lookup := question.lookup()
	lookup.Data = appendAttribute(lookup.Data, attribute{unix.RTA_OIF, bytesOf(uint32(index))})
	answers, err := p.Route.Do([]nlsock.Request{lookup})
	if err != nil || len(answers) == 0 {
		return false, err
	}
	found := message{Kind: unix.RTM_NEWROUTE, Data: answers[0].Data}
	if _, err := found.attributes(); err != nil {
		return false, err
	}
	const atBits = 1
	via, _ := netip.AddrFromSlice(found.get(unix.RTA_GATEWAY))
	return found.Data[atBits] > 0 || via == gateway, nil
}
