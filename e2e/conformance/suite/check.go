package suite

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

func checkBefore040(l *lab) {
	a := l.attach()
	for _, v := range []string{"0.3.1", "0.2.0"} {
		l.expect(a.call("CHECK", key("cniVersion", v)), types.ErrIncompatibleCNIVersion)
	}
}

func checkWithoutPrevResult(l *lab) {
	l.checks()
	a := l.attach()
	o := a.call("CHECK", noKey("prevResult"))
	l.fails(o, "without prevResult:")
	l.saw("%s", o)
}

// spoilt attaches a container, spoils something, and has CHECK find it.
func (l *lab) spoilt(what string, spoil func(a *attachment, h *netlink.Handle, link netlink.Link)) {
	a := l.attach()
	h, err := a.container.links()
	l.must(err)
	defer h.Close()
	link, err := h.LinkByName(a.ifName)
	l.must(err)
	if e := a.checked(); e != nil {
		l.fail("CHECK fails before anything is spoilt: %v", e)
	}
	spoil(a, h, link)
	o := a.call("CHECK")
	l.fails(o, what+":")
	l.saw("%s: %s", what, o)
}

const anothers = "what it did not create is not for it to check"

func checkOfInterface(l *lab) {
	l.checks()
	l.needsInterface(anothers)
	l.spoilt("the interface down", func(_ *attachment, h *netlink.Handle, link netlink.Link) { l.must(h.LinkSetDown(link)) })
	l.spoilt("the interface renamed", func(_ *attachment, h *netlink.Handle, link netlink.Link) {
		l.must(h.LinkSetDown(link))
		l.must(h.LinkSetName(link, "other0"))
		l.must(h.LinkSetUp(link))
	})
	l.spoilt("the interface removed", func(_ *attachment, h *netlink.Handle, link netlink.Link) { l.must(h.LinkDel(link)) })
	l.spoilt("prevResult of another namespace", func(a *attachment, _ *netlink.Handle, _ netlink.Link) {
		result := l.read(a.result)
		for _, i := range result.Interfaces {
			if i.Sandbox != "" {
				i.Sandbox = "/run/netns/another"
			}
		}
		a.result = l.inVersion(result, a.version)
	})
}

func checkOfAddress(l *lab) {
	l.checks()
	l.needsInterface(anothers)
	l.spoilt("an address removed", func(a *attachment, h *netlink.Handle, link netlink.Link) {
		ips := a.own()
		if len(ips) == 0 {
			l.inapplicable("the plugin assigned no address")
		}
		l.must(h.AddrDel(link, &netlink.Addr{IPNet: &ips[0].Address}))
	})
}

func checkOfRoute(l *lab) {
	l.checks()
	l.needsInterface(anothers)
	a := l.attach()
	l.must(a.addRoute("203.0.113.0/24"))
	if e := a.checked(); e != nil {
		l.fail("another route was added, and CHECK does not tolerate it: %v", e)
	}
	if len(l.read(a.result).Routes) == 0 {
		l.saw("a route that was added is tolerated; its own result has none")
		return
	}
	l.spoilt("a route removed", func(a *attachment, h *netlink.Handle, _ netlink.Link) {
		dst, err := netip.ParsePrefix(l.read(a.result).Routes[0].Dst.String())
		l.must(err)
		for _, r := range l.routes(a.container) {
			if sameDestination(r, dst) {
				l.must(h.RouteDel(&r))
			}
		}
	})
}

// addRoute adds a route over the attachment's interface.
func (a *attachment) addRoute(cidr string) error {
	h, err := a.container.links()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(a.ifName)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
}

func checkAllowsLaterChange(l *lab) {
	l.checks()
	a := l.attach(withPorts)
	mac := net.HardwareAddr{0x02, 0x42, 0xac, 0x11, 0, 0x77}
	h, err := a.container.links()
	l.must(err)
	defer h.Close()
	link, err := h.LinkByName(a.ifName)
	l.must(err)
	l.must(h.LinkSetHardwareAddr(link, mac))
	result := l.read(a.result)
	for _, i := range result.Interfaces {
		if i.Name == a.ifName && i.Sandbox != "" {
			i.Mac = mac.String()
		}
	}
	a.result = l.inVersion(result, a.version)
	if e := a.checked(); e != nil {
		l.fail("the MAC address was changed, and prevResult has it: %v", e)
	}
}

// ruleset is the host's firewall, as text.
func ruleset() string {
	var all strings.Builder
	for _, argv := range [][]string{{"nft", "list", "ruleset"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}} {
		out, _ := exec.Command(argv[0], argv[1:]...).Output()
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				all.WriteString(line)
			}
		}
	}
	return all.String()
}

func checkOfFirewall(l *lab) {
	l.checks()
	l.warm()
	a := l.newAttachment(withPorts)
	before := ruleset()
	a.mustAdd()
	if ruleset() == before {
		l.inapplicable("ADD leaves no firewall rule")
	}
	if e := a.checked(); e != nil {
		l.fail("CHECK fails before anything is spoilt: %v", e)
	}
	for _, argv := range [][]string{
		{"nft", "flush", "ruleset"},
		{"iptables-legacy", "-t", "nat", "-F"}, {"iptables-legacy", "-t", "filter", "-F"},
		{"ip6tables-legacy", "-t", "nat", "-F"}, {"ip6tables-legacy", "-t", "filter", "-F"},
	} {
		_ = exec.Command(argv[0], argv[1:]...).Run() // legacy tables may not be there
	}
	o := a.call("CHECK")
	l.fails(o, "all firewall rules flushed:")
	l.saw("%s", o)
}

func checkOfProcess(l *lab) {
	l.checks()
	a, _ := l.needsHelpers()
	if e := a.checked(); e != nil {
		l.fail("CHECK fails before anything is killed: %v", e)
	}
	left := a.killHelpers()
	o := a.call("CHECK")
	l.fails(o, "all processes of ADD killed:")
	l.saw("%d processes killed: %s", len(left), o)
}

func checkAfterADD(l *lab) {
	l.checks()
	for n := range 5 {
		a := l.attach(withPorts)
		if e := a.checked(); e != nil {
			l.fail("number %d of 5: %v", n+1, e)
		}
	}
}

func checkOfDelegates(l *lab) {
	l.checks()
	d := l.delegate(script{})
	a := d.attachment()
	a.mustAdd()
	l.succeeds(a.call("CHECK"))
	if len(d.calls("CHECK")) != 1 {
		l.fail("the delegate was not CHECKed")
	}
	d = l.delegate(script{script: scripted.Script{Fail: map[string]uint{"CHECK": 123}}})
	a = d.attachment()
	a.mustAdd()
	o := a.call("CHECK")
	l.fails(o, "the delegate's CHECK fails with code 123:")
	if o.code() != 123 {
		l.saw("the code 123 of the delegate became %d", o.code())
	}
	if l.job.ListKey == "" {
		l.saw("it takes no inner conflist, whose disableCheck there could be")
		return
	}
	a = l.inner(object{}.with("disableCheck", true), scripted.Script{Fail: map[string]uint{"CHECK": 123}})
	a.mustAdd()
	if o := a.call("CHECK"); !o.ok() {
		l.fail("disableCheck of the inner conflist was not honoured: %s", o)
	}
	l.saw("disableCheck of an inner conflist is honoured")
}

func checkChangesNothing(l *lab) {
	l.checks()
	a := l.attach(withPorts)
	before := l.snapshot(a.container)
	o := a.call("CHECK")
	l.succeeds(o)
	if len(o.stdout) > 0 {
		l.fail("CHECK printed %s", short(o.stdout))
	}
	l.unchanged(before, "after CHECK", a.container)
}

// transient are the codes of a condition that will pass.
const tryAgain = 11

func passingCondition(l *lab) {
	l.checks()
	if l.job.DelegateKey != "" {
		d := l.delegate(script{script: scripted.Script{Fail: map[string]uint{"CHECK": tryAgain}}})
		a := d.attachment()
		a.mustAdd()
		l.expect(a.call("CHECK"), tryAgain)
		l.saw("a delegate's code 11 is passed on")
		return
	}
	a := l.newAttachment(withPorts)
	left := a.helpers()
	if len(left) == 0 {
		l.inapplicable("the plugin depends on no delegate and on no process that could be busy for a while")
	}
	kill(left, unix.SIGSTOP)
	o := a.call("CHECK")
	kill(left, unix.SIGCONT)
	if !o.ok() {
		l.expect(o, tryAgain)
	}
	l.saw("its processes stopped: %s", o)
	if !waitUntil(func() bool { return a.checked() == nil }) {
		l.fail("its processes went on, and CHECK still fails: %v", a.checked())
	}
	if slices.ContainsFunc(left, func(pid int) bool { return !alive(pid) }) {
		l.fail("a process ended because it was stopped for a while")
	}
}
