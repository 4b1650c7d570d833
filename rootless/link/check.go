package link

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// Check compares a place with what was carried to it, and names every difference. What
// else there is, is the container's own. However much that is, Check takes its time and
// no more: a list is asked for with filters, and looked at to a bound.
func (c *Carried) Check(p *Place) error {
	var errs []error
	of := names{loIndex: "lo"}
	for _, l := range c.Links {
		err := l.check(p)
		errs = append(errs, err)
		if !errors.Is(err, errGone) {
			of[l.Index] = l.Name
		}
	}
	errs = append(errs, c.checkHung(p, of)...)
	for _, name := range slices.Sorted(maps.Keys(c.Sysctls)) {
		if _, link, _, ok := linkOf(name); ok && c.ofLink(name) && !slices.Contains(slices.Collect(maps.Values(of)), link) {
			continue
		}
		value, err := p.Read(name)
		if want := c.Sysctls[name]; err == nil && value != want {
			err = fmt.Errorf("net.%s is %s and not %s", dotted(name), value, want)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

var errGone = errors.New("it is not in the namespace")

func (l Link) check(p *Place) error {
	now, err := p.find(l.Index, "")
	if err == nil && (now == nil || now.Kind != l.Kind || now.Peer != l.Peer) {
		err = errGone
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", l.Name, err)
	}
	var errs []error
	differs := func(what string, have, want any) {
		if have != want {
			errs = append(errs, fmt.Errorf("interface %s: %s is %v and not %v", l.Name, what, have, want))
		}
	}
	differs("its name", now.Name, l.Name)
	differs("its MAC address", now.MAC, l.MAC)
	differs("its MTU", now.MTU, l.MTU)
	differs("the length of its queue", now.TxQueue, l.TxQueue)
	differs("its alias", now.Alias, l.Alias)
	differs("its alternative names", strings.Join(now.AltNames, " "), strings.Join(l.AltNames, " "))
	differs("its state", flags(now.Flags), flags(l.Flags))
	return errors.Join(errs...)
}

// flags are those of an interface in words.
func flags(f uint32) string {
	var words []string
	for _, w := range []struct {
		flag uint32
		word string
	}{{unix.IFF_NOARP, "noarp"}, {unix.IFF_ALLMULTI, "allmulticast"}, {unix.IFF_PROMISC, "promiscuous"}, {unix.IFF_DYNAMIC, "dynamic"}} {
		if f&w.flag != 0 {
			words = append(words, w.word)
		}
	}
	if f&unix.IFF_MULTICAST == 0 {
		words = append(words, "without multicast")
	}
	state := "down"
	if f&unix.IFF_UP != 0 {
		state = "up"
	}
	return strings.Join(append([]string{state}, words...), ", ")
}

// checkHung looks up routes, which costs the same however many there are, and asks for
// a list of each sort of what is left, and strikes off what it finds.
func (c *Carried) checkHung(p *Place, of names) (errs []error) {
	wanted := map[question][]*message{}
	var order []question
	missing, err := p.lookUp(c.Hung, of)
	errs = append(errs, err)
	for _, m := range missing {
		q := m.question()
		if wanted[q] == nil {
			order = append(order, q)
		}
		wanted[q] = append(wanted[q], m)
	}
	for _, q := range order {
		missing, err := p.strikeOff(q, wanted[q], of)
		errs = append(errs, err)
		for _, m := range missing {
			if m.lasts() {
				errs = append(errs, fmt.Errorf("%s is missing, or not as it was", m.What))
			}
		}
	}
	return errs
}

// lookUp returns what is not a route of the main table that the kernel finds when it is
// asked for the way to its destination.
func (p *Place) lookUp(list []message, of names) (missing []*message, err error) {
	var lookups []nlsock.Request
	for i := range list {
		m := &list[i]
		missing = append(missing, m)
		if m.Kind == unix.RTM_NEWROUTE && m.table() == unix.RT_TABLE_MAIN && m.Data[atRouteType] == unix.RTN_UNICAST {
			lookups = append(lookups, m.lookup())
		}
	}
	answers, err := p.Route.Do(lookups)
	for _, a := range answers {
		found := message{Kind: unix.RTM_NEWROUTE, Data: a.Data}
		if _, err := found.attributes(); err == nil && found.clean(of) {
			missing = slices.DeleteFunc(missing, found.same)
		}
	}
	return missing, err
}

const rtmFibMatch = 0x2000 // RTM_F_FIB_MATCH: the route itself and not what became of it (Linux 4.13)

// lookup asks for the way to the first address of a route's destination; of a default
// route to one that nobody has (RFC 5737, RFC 3849).
func (m *message) lookup() nlsock.Request {
	to := m.get(unix.RTA_DST)
	if to == nil && m.Data[0] == unix.AF_INET {
		to = netip.MustParseAddr("192.0.2.1").AsSlice()
	} else if to == nil {
		to = netip.MustParseAddr("2001:db8::1").AsSlice()
	}
	header := routeHeader(m.Data[0])
	header[1] = uint8(len(to) * 8)
	put(header[atFlags:], rtmFibMatch)
	return nlsock.Request{
		About: "looking for " + m.What, Kind: unix.RTM_GETROUTE, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK, MayFail: true,
		Data: appendAttribute(header, attribute{unix.RTA_DST, to}),
	}
}

// mayBe is a quick look at whether two are the same: a list may be long.
func (m *message) mayBe(o *message) bool {
	if m.Data[0] != o.Data[0] || m.Data[1] != o.Data[1] {
		return false
	}
	return m.Kind != unix.RTM_NEWROUTE || bytes.Equal(m.get(unix.RTA_DST), o.get(unix.RTA_DST))
}

// strikeOff returns what is not in a list. One that changed while it was read is read
// again, but not for ever: the container's root may change it all the time.
func (p *Place) strikeOff(q question, missing []*message, of names) ([]*message, error) {
	missing = slices.Clone(missing)
	const tries = 3
	for range tries {
		whole, err := p.each(q, func(m *message) {
			if slices.ContainsFunc(missing, m.mayBe) && m.clean(of) {
				missing = slices.DeleteFunc(missing, m.same)
			}
		})
		switch {
		case whole || len(missing) == 0:
			return missing, nil
		case err != nil:
			return missing, err
		}
	}
	return missing, nil
}

// question asks for the list that the message is in, filtered as far as the kernel does
// that.
func (m *message) question() question {
	switch m.Kind {
	case unix.RTM_NEWADDR:
		header := make([]byte, unix.SizeofIfAddrmsg)
		header[0] = m.Data[0]
		copy(header[atIndex:], m.Data[atIndex:])
		return ask("listing the addresses", m.Kind, header)
	case unix.RTM_NEWROUTE:
		header := routeHeader(m.Data[0])
		header[atRouteProto], header[atRouteType] = m.Data[atRouteProto], m.Data[atRouteType]
		filter := []attribute{{unix.RTA_TABLE, bytesOf(m.table())}}
		if index := m.get(unix.RTA_OIF); index != nil {
			filter = append(filter, attribute{unix.RTA_OIF, index})
		}
		return ask("listing the routes", m.Kind, header, filter...)
	case unix.RTM_NEWRULE:
		return ask("listing the routing rules", m.Kind, routeHeader(m.Data[0]))
	case unix.RTM_NEWNEIGH:
		header := make([]byte, unix.SizeofNdMsg)
		header[atNeighFlags] = m.Data[atNeighFlags] & unix.NTF_PROXY
		return ask("listing the neighbours", m.Kind, header, attribute{unix.NDA_IFINDEX, m.Data[atIndex : atIndex+4]})
	}
	if m.Kind == unix.RTM_NEWQDISC {
		return ask("listing the queueing disciplines", m.Kind, make([]byte, sizeofTcMsg))
	}
	parent := number(m.Data[atTcParent:])
	if m.Kind == unix.RTM_NEWTCLASS {
		parent = number(m.Data[atTcHandle:]) &^ 0xffff // the discipline that they are of
	}
	return m.within(m.Kind, parent)
}

// clean brings an entry of a list into the form that is carried, or says that it is not
// carried.
func (m *message) clean(of names) bool {
	switch m.Kind {
	case unix.RTM_NEWADDR:
		return m.asAddress(of)
	case unix.RTM_NEWROUTE:
		return m.cleanRoute(of)
	case unix.RTM_NEWRULE:
		return m.asRule()
	case unix.RTM_NEWNEIGH:
		return m.asNeighbour(of)
	}
	return m.asTraffic(of)
}

// same says whether two are the same but for what changes by itself.
func (m *message) same(o *message) bool {
	return m.Kind == o.Kind && m.unchanging() == o.unchanging()
}

// unchanging is the message as a text of what stays. Of an address that is the account
// of its time, and whether it was tried out.
func (m *message) unchanging() string {
	header := slices.Clone(m.Data[:headers[m.Kind]])
	if m.Kind == unix.RTM_NEWADDR {
		header[atAddressFlags] = 0
	}
	list, _ := m.attributes()
	texts := make([]string, 0, len(list))
	for _, a := range list {
		switch {
		case m.Kind == unix.RTM_NEWADDR && a.is(unix.IFA_CACHEINFO):
			continue
		case m.Kind == unix.RTM_NEWADDR && a.is(unix.IFA_FLAGS):
			const stay = unix.IFA_F_PERMANENT | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN
			a.value = bytesOf(number(a.value) & stay)
		}
		texts = append(texts, fmt.Sprintf("%d=%x", a.kind, a.value))
	}
	slices.Sort(texts)
	return fmt.Sprintf("%x %v", header, texts)
}

// lasts says that the kernel does not take it away when its time has come.
func (m *message) lasts() bool {
	return m.Kind != unix.RTM_NEWADDR || m.number(unix.IFA_FLAGS)&unix.IFA_F_PERMANENT != 0
}
