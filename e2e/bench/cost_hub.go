package main

import (
	"fmt"
	"time"
)

// Networks of users: what the first container of a network costs, which starts all that is
// there for it, what the next ones cost, and what it holds. Beside them containers that have
// all that for themselves.

// crew is how many containers the networks have whose memory is compared, with two ports each.
const crew = 20

func (p *costPlan) hub() error {
	binary, name := ambiBinary, "private"
	if p.before != "" {
		binary, name = p.before, "private, before"
	}
	if err := p.joining(binary, name); err != nil {
		return err
	}
	return p.crews(binary, name)
}

// joining compares ADD and DEL.
func (p *costPlan) joining(binary, name string) error {
	enter := func(key, title, subject string, target float64) *comparison {
		return p.compare(comparison{Key: key, Title: title, Section: inHub, Subject: subject, Other: name, Unit: "ms", Target: target, Use: &use{}})
	}
	first, next := enter("hub_add", "ADD with one port", "the first of a network", 1.6), enter("hub_add_next", "ADD with one port", "the next ones", 0.8)
	left, last := enter("hub_del", "DEL", "not the last of a network", 0), enter("hub_del_last", "DEL", "the last of a network", 0)
	for n := range p.times + 1 {
		undo := stopper{}
		shared, err := p.together(&undo)
		if err != nil {
			undo.stop()
			return err
		}
		alone, err := p.alone(&undo, binary)
		undo.stop()
		if err != nil {
			return err
		}
		if n == 0 {
			continue // the programs are not in memory yet
		}
		first.addSamples(shared[0], alone[0])
		next.addSamples(shared[1], alone[0])
		left.addSamples(shared[2], alone[1])
		last.addSamples(shared[3], alone[1])
	}
	return nil
}

// spend times one call of the user's, with the processor time that it and what it waited for
// have used. What stays is not in it.
func (m member) spend(command string) (sample, error) {
	cmd := m.verb(command)
	begin := time.Now()
	err := call(cmd)
	s := sample{wall: sinceInMilliseconds(begin)}
	if err == nil {
		used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		s.processor = float64(used.Nanoseconds()) / 1e6
	}
	return s, err
}

// together are ADD, ADD, DEL, DEL of two members of a network.
func (p *costPlan) together(undo *stopper) (samples []sample, err error) {
	var members []member
	for n := range 2 {
		c, err := newContainer()
		if err != nil {
			return nil, err
		}
		undo.add(c.stop)
		members = append(members, member{c: c, binary: ambiBinary, network: "joined", number: 2 + n, ports: []portMapping{{3000 + n, servicePort, "tcp"}}})
		undo.add(func() { _ = members[n].call("DEL") })
	}
	for _, command := range []string{"ADD", "DEL"} {
		for _, m := range members {
			s, err := m.spend(command)
			if err != nil {
				return nil, err
			}
			samples = append(samples, s)
		}
	}
	return samples, nil
}

// alone are ADD and DEL of a private network.
func (p *costPlan) alone(undo *stopper, binary string) (samples []sample, err error) {
	c, err := newContainer()
	if err != nil {
		return nil, err
	}
	undo.add(c.stop)
	m := member{c: c, binary: binary, network: "alone", private: true, ports: []portMapping{{3000, servicePort, "tcp"}}}
	undo.add(func() { _ = m.call("DEL") })
	for _, command := range []string{"ADD", "DEL"} {
		s, err := m.spend(command)
		if err != nil {
			return nil, err
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// crews compares the memory of many containers in one network with that of as many private
// ones, and with what Podman starts for as many: slirp4netns and rootlessport, or pasta.
func (p *costPlan) crews(binary, name string) error {
	one := func(undo *stopper, private bool) func(int) error {
		return func(n int) error {
			c, err := newContainer()
			if err != nil {
				return err
			}
			undo.add(c.stop)
			m := member{c: c, binary: ambiBinary, network: "crew", private: private, number: 2 + n, ports: []portMapping{{4000 + 2*n, servicePort, "tcp"}, {4001 + 2*n, servicePort, "udp"}}}
			if private {
				m.binary = binary
			}
			undo.add(func() { _ = m.call("DEL") })
			return m.call("ADD")
		}
	}
	hub, err := crewMemory(func(undo *stopper) func(int) error { return one(undo, false) }, "ambi", "slirp4netns", "passt", "pasta")
	if err != nil {
		return err
	}
	for _, other := range []struct {
		key, name string
		begin     func(*stopper) func(int) error
		programs  []string
	}{
		{"private", fmt.Sprintf("%d %s", crew, name), func(undo *stopper) func(int) error { return one(undo, true) }, []string{"ambi", "ambi-before", "slirp4netns", "passt", "pasta"}},
		{"rootlessport", fmt.Sprintf("%d slirp4netns and rootlessport, as Podman's", crew), crewOf(rootlessport), []string{"rootlessport", "slirp4netns"}},
		{"pasta", fmt.Sprintf("%d pasta, as Podman's", crew), crewOf(pasta), []string{"passt", "pasta"}},
	} {
		m, err := crewMemory(other.begin, other.programs...)
		for _, part := range []struct {
			key, title string
			a, b       float64
			limit      float64
		}{{"pss", "proportional", hub.Proportional, m.Proportional, 15}, {"private", "private part", hub.Private, m.Private, 0}} {
			c := p.compare(comparison{
				Key: "hub_memory_" + other.key + "_" + part.key, Title: fmt.Sprintf("%d containers with 2 ports each, %s", crew, part.title), Section: inHub,
				Subject: "a network", Other: other.name, Unit: "MB", Limit: part.limit,
			})
			c.A.add(part.a, nil)
			c.B.add(part.b, err)
		}
	}
	return nil
}

// crewOf has each container's port published by a forwarder.
func crewOf(up func(int, *stopper) (*process, error)) func(*stopper) func(int) error {
	return func(undo *stopper) func(int) error {
		return func(n int) error {
			_, err := up(4000+n, undo)
			return err
		}
	}
}

// crewMemory is what the programs hold when the crew is there and idle.
func crewMemory(begin func(*stopper) func(int) error, programs ...string) (memory, error) {
	undo := stopper{}
	defer undo.stop()
	one := begin(&undo)
	for n := range crew {
		if err := one(n); err != nil {
			return memory{}, err
		}
	}
	time.Sleep(2 * time.Second) // a hub gives memory back when its members have settled
	return settled(func() (memory, error) { return memoryOf(programs...) })
}
