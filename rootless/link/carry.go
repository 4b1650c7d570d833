package link

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// Carried is what was made to be in another place as it was in the first, in terms of the
// other place, so that it can be compared with it. It goes into a record.
type Carried struct {
	Links   []Link            `json:"links"`
	LoUp    bool              `json:"loUp,omitempty"`
	Hung    []message         `json:"hung,omitempty"`    // on the links, in the order in which it is put on
	Removed []message         `json:"removed,omitempty"` // what comes by itself, and was removed: routes of addresses
	Sysctls map[string]string `json:"sysctls,omitempty"` // that were changed: paths below /proc/sys/net
}

// Fresh is what a new network namespace is like, as a measure for what was changed in one.
type Fresh struct {
	Links   []string          `json:"links"` // those that the kernel makes itself
	Sysctls map[string]string `json:"sysctls"`
}

// Observe looks at a new network namespace.
func Observe(p *Place) (*Fresh, error) {
	links, err := p.links()
	if err != nil {
		return nil, err
	}
	f := &Fresh{Sysctls: p.readSysctls()}
	for _, l := range links {
		f.Links = append(f.Links, l.Name)
	}
	return f, nil
}

// Carry has everything that was made in one place since it was fresh be in another. An
// interface that rename has gets that name there, others keep theirs. When it fails,
// what it has done is undone.
func Carry(from, to *Place, fresh *Fresh, rename map[string]string) (*Carried, error) {
	c, err := from.survey(fresh, rename)
	if err != nil {
		return nil, fmt.Errorf("reading what the plugins have made: %w", err)
	}
	if err := c.carry(from, to); err != nil {
		return nil, errors.Join(fmt.Errorf("giving the container what the plugins have made: %w", err), c.Back(to, from))
	}
	return c, nil
}

// survey reads what there is to carry.
func (p *Place) survey(fresh *Fresh, rename map[string]string) (*Carried, error) {
	links, err := p.links()
	if err != nil {
		return nil, err
	}
	c := &Carried{}
	of, renamed := names{loIndex: "lo"}, map[string]string{}
	for _, l := range links {
		if l.Index == loIndex {
			c.LoUp = l.Flags&unix.IFF_UP != 0
		}
		if slices.Contains(fresh.Links, l.Name) {
			continue
		}
		l.Home, l.HomeIndex = l.Name, l.Index
		if name, ok := rename[l.Name]; ok {
			l.Name = name
		}
		renamed[l.Home], of[l.Index] = l.Name, l.Name
		c.Links = append(c.Links, l)
	}
	if err := c.survey(p, of, renamed); err != nil {
		return nil, err
	}
	c.Sysctls = changed(fresh.Sysctls, p.readSysctls(), renamed)
	return c, nil
}

func (c *Carried) survey(p *Place, of names, renamed map[string]string) error {
	addresses, err := p.addresses(of)
	if err != nil {
		return err
	}
	routes, connected, err := p.routes(of)
	if err != nil {
		return err
	}
	c.Removed = disconnected(addresses, connected, of)
	rules, err := p.rules()
	if err != nil {
		return err
	}
	neighbours, err := p.neighbours(of)
	if err != nil {
		return err
	}
	traffic, err := p.traffic(of)
	if err != nil {
		return err
	}
	for _, m := range slices.Concat(addresses, routes, rules, neighbours, traffic) {
		m.rename(renamed)
		c.Hung = append(c.Hung, *m)
	}
	return nil
}

func (c *Carried) carry(from, to *Place) error {
	if err := to.writeSysctls(c.Sysctls, func(s string) bool { return !c.ofLink(s) }); err != nil {
		return err
	}
	indices := map[int]int{loIndex: loIndex}
	for i := range c.Links {
		l := &c.Links[i]
		now, err := Move(from, to, l.HomeIndex, l.Name)
		if err != nil {
			return err
		}
		l.Index = now.Index
		indices[l.HomeIndex] = l.Index
	}
	c.Hung, c.Removed = moved(c.Hung, indices), moved(c.Removed, indices)
	if err := to.writeSysctls(c.Sysctls, c.ofLink); err != nil {
		return err
	}
	return c.put(to)
}

func moved(list []message, indices map[int]int) (there []message) {
	for _, m := range list {
		if m.move(indices) {
			there = append(there, m)
		}
	}
	return there
}

// put puts on what is carried, and says all that failed.
func (c *Carried) put(p *Place) error {
	var errs []error
	for i := range c.Hung {
		if m := &c.Hung[i]; m.Kind == unix.RTM_NEWADDR && m.address().Addr().IsLinkLocalUnicast() {
			errs = append(errs, m.putAddress(p)) // the kernel would make it, and first try it out
		}
	}
	errs = append(errs, c.putFlags(p))
	for i := range c.Hung {
		if m := &c.Hung[i]; m.Kind == unix.RTM_NEWADDR && !m.address().Addr().IsLinkLocalUnicast() {
			errs = append(errs, m.putAddress(p))
		}
	}
	errs = append(errs, c.inTurns(func(m *message) error { return m.putRoute(p) }, unix.RTM_NEWROUTE))
	for i := range c.Removed { // late: a gateway may have been reached by it
		errs = append(errs, ignoring(c.Removed[i].send(p, "removing", unix.RTM_DELROUTE, 0), unix.ESRCH))
	}
	replace := func(m *message) error {
		return m.send(p, "setting", m.Kind, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	errs = append(errs, c.inTurns(replace, unix.RTM_NEWNEIGH))
	errs = append(errs, c.inTurns(replace, unix.RTM_NEWQDISC, unix.RTM_NEWTCLASS, unix.RTM_NEWTFILTER))
	errs = append(errs, c.inTurns(func(m *message) error {
		return ignoring(m.send(p, "setting", m.Kind, unix.NLM_F_CREATE|unix.NLM_F_EXCL), unix.EEXIST)
	}, unix.RTM_NEWRULE))
	return errors.Join(errs...)
}

func (c *Carried) putFlags(p *Place) error {
	var b nlsock.Batch
	if c.LoUp {
		b.Add("setting interface lo up", unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, loIndex, unix.IFF_UP, unix.IFF_UP), nil)
	}
	for _, l := range c.Links {
		b.Add("setting the flags of interface "+l.Name, unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, l.Index, l.Flags, settable), nil)
	}
	_, err := b.Send(p.Route)
	return err
}

// putAddress puts an address on that is in use: one of IPv6 is not tried out again
// (duplicate address detection), which would have it unusable for a second, unless that
// was not done with.
func (m *message) putAddress(p *Place) error {
	flags := m.number(unix.IFA_FLAGS)
	first := *m
	settled := m.Data[0] == unix.AF_INET6 && flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_NODAD) == 0
	if settled {
		first.set(unix.IFA_FLAGS, bytesOf(flags|unix.IFA_F_NODAD))
	}
	err := first.send(p, "setting", m.Kind, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	if err == nil && settled {
		err = m.send(p, "setting", m.Kind, unix.NLM_F_REPLACE)
	}
	return err
}

// inTurns calls do with the messages of some kinds, and again with those that failed, as
// long as others succeed: a gateway may be reached by a route, and a class be in one,
// that comes later.
func (c *Carried) inTurns(do func(*message) error, kinds ...uint16) error {
	var waiting []*message
	for i := range c.Hung {
		if slices.Contains(kinds, c.Hung[i].Kind) {
			waiting = append(waiting, &c.Hung[i])
		}
	}
	for {
		var errs []error
		var still []*message
		for _, m := range waiting {
			if err := do(m); err != nil {
				errs, still = append(errs, err), append(still, m)
			}
		}
		if len(still) == 0 || len(still) == len(waiting) {
			return errors.Join(errs...)
		}
		waiting = still
	}
}

// putRoute sets a route. One that the container has to the same destination stays the
// first choice: ours comes after it.
func (m *message) putRoute(p *Place) error {
	err := m.send(p, "setting", m.Kind, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if m.Data[0] == unix.AF_INET6 {
		if m.kernelMade() {
			return nil
		}
		m.set(unix.RTA_PRIORITY, bytesOf(m.number(unix.RTA_PRIORITY)+m.number(unix.RTA_OIF)))
	}
	return ignoring(m.send(p, "setting", m.Kind, unix.NLM_F_CREATE|unix.NLM_F_APPEND), unix.EEXIST)
}

// Back takes the links home, and puts on them there what was carried, so that the
// plugins which made it find it; what hangs on none of them is removed from the
// container. Its root may have renamed or removed anything: what is not there any more is
// no error.
func (c *Carried) Back(from, home *Place) error {
	var errs []error
	back := Carried{Sysctls: map[string]string{}}
	indices, renamed := map[int]int{}, map[string]string{}
	for _, l := range c.Links {
		there, err := l.back(from, home)
		errs = append(errs, err)
		indices[l.Index] = gone
		if there != nil {
			indices[l.Index], renamed[l.Name] = there.Index, there.Name
			back.Links = append(back.Links, *there)
		}
	}
	for i := range c.Hung {
		m := c.Hung[i]
		switch {
		case !m.on(indices):
			_ = m.send(from, "removing", m.Kind+1, 0) // RTM_DEL…
		case m.move(indices) && !m.on(map[int]int{gone: 0}):
			m.rename(renamed)
			back.Hung = append(back.Hung, m)
		}
	}
	back.Removed = moved(c.Removed, indices)
	for name, value := range c.Sysctls {
		if folder, link, rest, ok := linkOf(name); ok && renamed[link] != "" {
			back.Sysctls[folder+renamed[link]+"/"+rest] = value
		}
	}
	_ = home.writeSysctls(back.Sysctls, back.ofLink)
	_ = back.put(home)
	return errors.Join(errs...)
}

const gone = -1 // the index of a link that is no more

// back is the link at home; nil when it is gone.
func (l Link) back(from, home *Place) (*Link, error) {
	now, err := from.find(l.Index, "")
	if err != nil || now == nil || l.Index == 0 || now.Kind != l.Kind || now.Peer != l.Peer {
		return nil, err
	}
	there, err := Move(from, home, l.Index, l.Home)
	if err != nil {
		return nil, ignoring(err, unix.ENODEV)
	}
	l.Index, l.Name = there.Index, l.Home
	return &l, nil
}

func ignoring(err error, harmless ...error) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}

// writeSysctls sets those that are meant.
func (p *Place) writeSysctls(values map[string]string, meant func(string) bool) error {
	var errs []error
	for name, value := range values {
		if !meant(name) {
			continue
		}
		if now, err := p.Read(name); err == nil && now == value {
			continue
		}
		errs = append(errs, ignoring(p.Write(name, value), fs.ErrNotExist))
	}
	return errors.Join(errs...)
}
