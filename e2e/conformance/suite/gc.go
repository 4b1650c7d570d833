package suite

import (
	"sync"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

const (
	gcKey    = "cni.dev/valid-attachments"
	oldGCKey = "cni.dev/attachments"
)

// gc is GC with these attachments as the valid ones.
func (l *lab) gc(conf object, valid ...*attachment) outcome {
	return l.call("GC", l.gcConf(conf).with(gcKey, listOf(valid)), noEnv("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"))
}

func (l *lab) gcConf(conf object) object {
	if conf == nil {
		conf = l.network.subject
	}
	return l.network.request(conf, "1.1.0", nil, nil)
}

func listOf(valid []*attachment) []types.GCAttachment {
	list := []types.GCAttachment{}
	for _, a := range valid {
		list = append(list, types.GCAttachment{ContainerID: a.id, IfName: a.ifName})
	}
	return list
}

// attach11 is an attachment of a network that knows GC.
func (l *lab) attach11(options ...option) *attachment {
	return l.attach(append([]option{withVersion("1.1.0"), withPorts}, options...)...)
}

// order fails when an attachment is not in order.
func (l *lab) order(a *attachment, when string) {
	if e := a.checked(); e != nil {
		l.fail("%s a valid attachment is not in order: %v", when, e)
	}
}

// stale is an attachment that a GC has to take down: its namespace is gone, as a
// plugin may assume of what is stale.
func (l *lab) stale(options ...option) *attachment {
	a := l.attach11(options...)
	a.container.destroy()
	return a
}

func gcBefore110(l *lab) {
	l.needs("1.1.0", "GC")
	a := l.attach()
	l.expect(l.call("GC", a.request("ADD").with("cniVersion", "1.0.0").with(gcKey, []any{})), types.ErrIncompatibleCNIVersion)
}

func (l *lab) needsGC() {
	l.needs("1.1.0", "GC")
	l.warm(withVersion("1.1.0"))
}

func gcReadsBothKeys(l *lab) {
	l.needsGC()
	for _, name := range []string{gcKey, oldGCKey} {
		valid := l.attach11()
		before := l.snapshot()
		stale := l.stale()
		o := l.call("GC", l.gcConf(nil).with(name, listOf([]*attachment{valid})))
		l.succeeds(o)
		l.order(valid, "with the list in "+name)
		stale.finish()
		l.unchanged(before, "after GC with the list in "+name)
		valid.takeDown()
		valid.container.destroy()
	}
}

func gcRemovesStaleOnly(l *lab) {
	l.needsGC()
	valid := l.attach11(withID("one"))
	before := l.snapshot()
	otherName, otherID := l.stale(withID("one"), withIfName("eth1")), l.stale(withID("two"))
	l.succeeds(l.gc(nil, valid))
	l.order(valid, "after GC")
	otherName.finish()
	otherID.finish()
	l.unchanged(before, "after GC")
	l.saw("one/eth0 kept; one/eth1 and two/eth0 removed")
}

func gcWithoutList(l *lab) {
	l.needsGC()
	before := l.snapshot()
	a := l.attach11()
	o := l.call("GC", l.gcConf(nil))
	l.order(a, "after GC without a list")
	if !o.ok() {
		l.fails(o, "without a list:")
	}
	l.saw("without a list: %s", o)
	a.container.destroy()
	l.succeeds(l.gc(nil))
	a.finish()
	l.unchanged(before, "after GC with an empty list")
	l.saw("an empty list: everything is removed")
}

func gcOfThisNetwork(l *lab) {
	l.needsGC()
	theirs := l.attach11()
	name := l.network.name
	l.network.name = name + "-other"
	l.succeeds(l.gc(nil))
	l.network.name = name
	l.order(theirs, "after GC of another network, with an empty list,")
	theirs.takeDown()
}

func gcGoesOnPastErrors(l *lab) {
	l.needs("1.1.0", "GC")
	d := l.delegate(script{script: scripted.Script{Fail: map[string]uint{"GC": 123}}}, script{kind: "delegate-b"}, script{kind: "delegate-c", script: scripted.Script{Fail: map[string]uint{"GC": 124}}})
	o := l.gc(d.conf)
	l.fails(o, "two of three delegates fail:")
	if n := len(d.calls("GC")); n != 3 {
		l.fail("%d of 3 delegates got GC", n)
	}
	if !o.says("123") || !o.says("124") {
		l.fail("the errors of both are not in the message: %s", o)
	}
}

func gcAfterNamespaces(l *lab) {
	l.needsGC()
	before := l.snapshot()
	a, b := l.stale(), l.stale(withIfName("eth1"))
	l.succeeds(l.gc(nil))
	a.finish()
	b.finish()
	l.unchanged(before, "after GC of containers whose namespaces are gone")
}

func gcOfDelegates(l *lab) {
	l.needs("1.1.0", "GC")
	d := l.delegate(script{})
	valid := &attachment{id: "valid", ifName: "eth0"}
	l.succeeds(l.gc(d.conf, valid))
	calls := d.calls("GC")
	if len(calls) != 1 {
		l.fail("the delegate, which speaks 1.1.0, got %d GCs", len(calls))
	}
	if list := string(calls[0].conf()[gcKey]); list != `[{"containerID":"valid","ifname":"eth0"}]` {
		l.fail("the delegate got the list %s", short([]byte(list)))
	}
	d.forget()
	d = l.delegate(script{kind: "delegate-1.0.0"})
	l.succeeds(l.gc(d.conf, valid))
	if len(d.calls("GC")) > 0 {
		l.fail("a delegate that speaks no 1.1.0 got GC")
	}
}

func gcDisabled(l *lab) {
	l.needs("1.1.0", "GC")
	if l.job.ListKey == "" {
		l.inapplicable("the plugin takes no inner conflist; disableGC of its own conflist is for the runtime (S1)")
	}
	a := l.inner(object{}.with("disableGC", true), scripted.Script{})
	a.version = "1.1.0"
	l.succeeds(l.gc(a.conf))
	d := &delegation{l: l}
	if len(d.calls("GC")) > 0 {
		l.fail("a delegate of a conflist with disableGC got GC")
	}
	a = l.inner(object{}, scripted.Script{})
	l.succeeds(l.gc(a.conf))
	if len(d.calls("GC")) != 1 {
		l.fail("a delegate of a conflist without disableGC got no GC")
	}
}

func gcPrintsNothing(l *lab) {
	l.needsGC()
	l.stale()
	for range 2 {
		o := l.gc(nil)
		l.succeeds(o)
		if len(o.stdout) > 0 {
			l.fail("GC printed %s", short(o.stdout))
		}
	}
}

func gcBesideOthers(l *lab) {
	l.needsGC()
	for range 3 {
		before := l.snapshot()
		leaving := l.attach11()
		coming := l.newAttachment(withVersion("1.1.0"), withPorts)
		var outcomes [3]outcome
		var group sync.WaitGroup
		group.Go(func() { outcomes[0] = coming.add() })
		group.Go(func() { outcomes[1] = l.gc(nil, coming, leaving) })
		group.Go(func() { outcomes[2] = leaving.call("DEL") })
		group.Wait()
		for _, o := range outcomes {
			l.succeeds(o)
		}
		l.order(coming, "after GC beside ADD")
		coming.takeDown()
		leaving.finish()
		coming.container.destroy()
		leaving.container.destroy()
		l.unchanged(before, "after ADD, DEL and GC side by side, and another DEL,")
	}
}

func gcOfSharedConfiguration(l *lab) {
	l.inapplicable("the protocol does not tell a plugin which runtime an attachment is of: what is not in the list is stale. A configuration that several runtimes share has disableGC for that, which is for runtimes to honour (S1)")
}
