package link

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// Link is an interface as it was when it was carried.
type Link struct {
	Name      string   `json:"name"`           // in the place that it was carried to
	Index     int      `json:"index"`          // there
	Home      string   `json:"home"`           // its name in the place where it came from
	HomeIndex int      `json:"homeIndex"`      // there
	Kind      string   `json:"kind,omitempty"` // veth, macvlan, … (IFLA_INFO_KIND)
	Peer      int      `json:"peer,omitempty"` // IFLA_LINK: the index of a veth's other end in its namespace
	MAC       string   `json:"mac,omitempty"`
	MTU       int      `json:"mtu"`
	TxQueue   int      `json:"txQueue"`
	Alias     string   `json:"alias,omitempty"`
	AltNames  []string `json:"altNames,omitempty"`
	Flags     uint32   `json:"flags"` // IFF_UP and others that people set
}

const loIndex = 1 // in every namespace (net/core/dev.c, LOOPBACK_IFINDEX)

// settable are the flags of an interface that are not its state (netdevice(7)).
const settable = unix.IFF_UP | unix.IFF_NOARP | unix.IFF_MULTICAST | unix.IFF_ALLMULTI | unix.IFF_PROMISC | unix.IFF_DYNAMIC

const extFilterSkipStats = 8 // RTEXT_FILTER_SKIP_STATS

// links are all interfaces of a place.
func (p *Place) links() ([]Link, error) {
	noStats := attribute{unix.IFLA_EXT_MASK, bytesOf(extFilterSkipStats)}
	list, err := p.list(ask("listing the interfaces", unix.RTM_NEWLINK, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), noStats))
	if err != nil {
		return nil, err
	}
	links := make([]Link, len(list))
	for i, m := range list {
		links[i] = parseLink(m)
	}
	slices.SortFunc(links, func(a, b Link) int { return a.Index - b.Index })
	return links, nil
}

// Link is the interface of a name; nil when there is none.
func (p *Place) Link(name string) (*Link, error) { return p.find(0, name) }

// ByIndex is the interface of an index; nil when there is none.
func (p *Place) ByIndex(index int) (*Link, error) { return p.find(index, "") }

// Remove removes the interface of a name. One that is not there is success.
func (p *Place) Remove(name string) error {
	l, err := p.find(0, name)
	if err != nil || l == nil {
		return err
	}
	var b nlsock.Batch
	b.DeleteLink(name, l.Index)
	_, err = b.Send(p.Route)
	return ignoring(err, unix.ENODEV)
}

// Take removes the interface of an index and returns when it is gone from here, and a veth's
// other end from there. The kernel answers who asks it to remove one only when it has forgotten
// all about it (rcu_barrier, by netdev_run_todo in net/core/dev.c), which takes it ten times as
// long. So it is asked from another place of the same namespace, which is closed then.
func (p *Place) Take(index int, worker *Place) error {
	done := make(chan error, 1)
	go func() {
		defer worker.Close()
		var b nlsock.Batch
		b.DeleteLink(fmt.Sprintf("with index %d", index), index)
		_, err := b.Send(worker.Route)
		done <- ignoring(err, unix.ENODEV)
	}()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(100 * time.Microsecond):
		}
		// While it is being removed this waits.
		if l, err := p.find(index, ""); err != nil || l == nil {
			return err
		}
	}
}

// find is the interface of an index, or with 0 that of a name; nil when there is none.
func (p *Place) find(index int, name string) (*Link, error) {
	var b nlsock.Batch
	b.Add("looking for interface "+name, unix.RTM_GETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, index, 0, 0), func(e *nlsock.Encoder) {
		if index == 0 {
			e.String(unix.IFLA_IFNAME, name)
		}
		e.Uint32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	})
	answers, err := b.Send(p.Route)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, err
	case len(answers) == 0:
		return nil, fmt.Errorf("looking for interface %s: no answer", name)
	}
	m := message{Kind: unix.RTM_NEWLINK, Data: answers[0].Data}
	if _, err := m.attributes(); err != nil {
		return nil, err
	}
	l := parseLink(&m)
	return &l, nil
}

func parseLink(m *message) Link {
	l := Link{Index: int(int32(number(m.Data[4:]))), Flags: number(m.Data[8:]) & settable}
	list, _ := m.attributes()
	for _, a := range list {
		switch a.kind &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			l.Name = text(a.value)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(a.value).String()
		case unix.IFLA_MTU:
			l.MTU = int(number(a.value))
		case unix.IFLA_TXQLEN:
			l.TxQueue = int(number(a.value))
		case unix.IFLA_IFALIAS:
			l.Alias = text(a.value)
		case unix.IFLA_LINK:
			l.Peer = int(number(a.value))
		case unix.IFLA_LINKINFO:
			l.Kind = text(nested(a.value, unix.IFLA_INFO_KIND))
		case unix.IFLA_PROP_LIST:
			l.AltNames = altNames(a.value)
		}
	}
	return l
}

func altNames(b []byte) (names []string) {
	list, _ := parseAttributes(b)
	for _, a := range list {
		if a.kind == unix.IFLA_ALT_IFNAME {
			names = append(names, text(a.value))
		}
	}
	slices.Sort(names)
	return names
}

// Move moves an interface from one place to another, where it has the name. It is down
// then, and has lost addresses, routes and queueing disciplines. It says what it is
// there. Nothing is done when the name is taken.
func Move(from, to *Place, index int, name string) (*Link, error) {
	var b nlsock.Batch
	b.Add("moving interface "+name, unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, index, 0, 0), func(e *nlsock.Encoder) {
		e.Uint32(unix.IFLA_NET_NS_FD, uint32(to.Netns.Fd()))
		e.String(unix.IFLA_IFNAME, name)
	})
	if _, err := b.Send(from.Route); err != nil {
		return nil, err
	}
	l, err := to.find(0, name)
	if err == nil && l == nil {
		err = fmt.Errorf("interface %s is gone again after it was moved", name)
	}
	return l, err
}
