package main

import (
	"fmt"
	"os/exec"
	"time"
)

// attachment is what one rootless attachment cost.
type attachment struct {
	add, del float64 // milliseconds
	memory   memory
}

// rootless compares an attachment of ambi with a slirp4netns alone, which can do no
// less than start, be ready and leave.
func (p *costPlan) rootless() error {
	add := p.compare(comparison{Key: "rootless_add", Title: "ADD with one port", Section: withoutRoot, Subject: "ambi", Other: "slirp4netns becomes ready", Unit: "ms", Target: 3})
	del := p.compare(comparison{Key: "rootless_del", Title: "DEL", Section: withoutRoot, Subject: "ambi", Other: "slirp4netns leaves", Unit: "ms", Target: 1.5})
	resident := p.compare(comparison{Key: "rootless_memory", Title: "an idle attachment, resident", Section: withoutRoot, Subject: "supervisor and slirp4netns", Other: "slirp4netns", Unit: "MB", Limit: 11})
	private := p.compare(comparison{Key: "rootless_memory_private", Title: "an idle attachment, private part", Section: withoutRoot, Subject: "supervisor and slirp4netns", Other: "slirp4netns", Unit: "MB"})
	for n := range p.times {
		a, err := attachAmbi(n)
		if err != nil {
			return err
		}
		b, err := attachSlirp()
		if err != nil {
			return err
		}
		add.add(a.add, b.add)
		del.add(a.del, b.del)
		resident.add(a.memory.Resident, b.memory.Resident)
		private.add(a.memory.Private, b.memory.Private)
	}
	return nil
}

// settling is the time after which an attachment counts as idle.
const settling = 300 * time.Millisecond

func attachAmbi(n int) (attachment, error) {
	var a attachment
	c, err := newContainer()
	if err != nil {
		return a, err
	}
	defer c.stop()
	conf := ambiConf("cost", netConf{"runtimeConfig": netConf{"portMappings": []portMapping{{3000, servicePort, "tcp"}}}})
	run := func(command string) (float64, error) {
		return milliseconds(verb(asUser(exec.Command(stage+"/bin/ambi")), command, fmt.Sprintf("cost%d", n), c.netns(), conf))
	}
	if a.add, err = run("ADD"); err != nil {
		return a, err
	}
	time.Sleep(settling)
	a.memory, err = memoryOf("ambi", "slirp4netns")
	var delErr error
	if a.del, delErr = run("DEL"); delErr != nil {
		return a, delErr
	}
	return a, err
}

func attachSlirp() (attachment, error) {
	var a attachment
	c, err := newContainer()
	if err != nil {
		return a, err
	}
	defer c.stop()
	begin := time.Now()
	s, err := startSlirp(c, "--disable-host-loopback")
	if err != nil {
		return a, err
	}
	a.add = sinceInMilliseconds(begin)
	time.Sleep(settling)
	a.memory, err = memoryOf("slirp4netns")
	begin = time.Now()
	s.leave()
	a.del = sinceInMilliseconds(begin)
	return a, err
}

func sinceInMilliseconds(begin time.Time) float64 {
	return float64(time.Since(begin).Nanoseconds()) / 1e6
}
