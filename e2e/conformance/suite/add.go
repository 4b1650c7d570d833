package suite

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

type (
	interface100 = types100.Interface
	ipConfig100  = types100.IPConfig
)

// link is an interface inside the container; nil without one.
func (l *lab) link(c *container, name string) netlink.Link {
	h, err := c.links()
	l.must(err)
	defer h.Close()
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	l.must(err)
	return link
}

// stranger puts an interface of somebody else into the container.
func (l *lab) stranger(c *container, name string) netlink.Link {
	h, err := c.links()
	l.must(err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	l.must(h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}))
	return l.link(c, name)
}

func addMakesInterface(l *lab) {
	a := l.newAttachment()
	if !l.network.chained() && l.link(a.container, a.ifName) != nil {
		l.broken("the container has an interface already")
	}
	l.succeeds(a.add())
	link := l.link(a.container, a.ifName)
	if link == nil {
		l.fail("ADD succeeded and there is no %s", a.ifName)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		l.fail("%s is not up", a.ifName)
	}
	l.saw("%s %s, mtu %d", link.Type(), a.ifName, link.Attrs().MTU)
}

func interfaceIsThere(l *lab) {
	l.needsInterface("that is there by then")
	c := l.newContainer()
	before := l.stranger(c, "eth0")
	a := l.newAttachment(withContainer(c))
	o := a.add()
	l.fails(o, "with an eth0 in the container:")
	after := l.link(c, "eth0")
	if after == nil || after.Attrs().Index != before.Attrs().Index {
		l.fail("the interface that was there is gone (%s)", o)
	}
	l.saw("%s", o)
}

func resultHasVersion(l *lab) {
	for _, v := range l.supported() {
		if v < "0.3.0" {
			continue
		}
		a := l.newAttachment(withVersion(v))
		l.succeeds(a.add())
		var r struct {
			CNIVersion string `json:"cniVersion"`
		}
		if err := json.Unmarshal(a.result, &r); err != nil || r.CNIVersion != v {
			l.fail("a configuration of %s has a result of %q: %s", v, r.CNIVersion, short(a.result))
		}
		a.takeDown()
	}
}

// hostLinks are the names of the host's interfaces.
func (l *lab) hostLinks() []string {
	links, err := netlink.LinkList()
	l.must(err)
	var names []string
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	return names
}

func resultListsInterfaces(l *lab) {
	a := l.newAttachment()
	before := l.hostLinks()
	a.mustAdd()
	listed := map[string]string{} // on the host: name, MAC address
	inside := false
	for _, i := range l.read(a.result).Interfaces {
		switch i.Sandbox {
		case "":
			listed[i.Name] = i.Mac
		case a.netns:
			inside = inside || i.Name == a.ifName
			l.sameMAC(i, l.link(a.container, i.Name))
		default:
			l.fail("sandbox %q of %s is not CNI_NETNS %q", i.Sandbox, i.Name, a.netns)
		}
	}
	if !inside {
		l.fail("no entry for %s with the sandbox %s: %s", a.ifName, a.netns, short(a.result))
	}
	for _, name := range l.hostLinks() {
		if _, is := listed[name]; !is && !slices.Contains(before, name) {
			l.fail("the new interface %s of the host is not listed: %s", name, short(a.result))
		}
	}
	for name, mac := range listed {
		link, err := netlink.LinkByName(name)
		if err != nil {
			l.fail("the interface %s, listed without a sandbox, is not on the host: %v", name, err)
		}
		l.sameMAC(&interface100{Name: name, Mac: mac}, link)
	}
	l.saw("%s in %s, on the host %d interfaces", a.ifName, a.netns, len(listed))
}

func (l *lab) sameMAC(i *interface100, link netlink.Link) {
	switch {
	case link == nil:
		l.fail("the interface %s of the result is not there", i.Name)
	case i.Mac != "" && !strings.EqualFold(i.Mac, link.Attrs().HardwareAddr.String()):
		l.fail("the MAC address of %s is %s, and not %s", i.Name, link.Attrs().HardwareAddr, i.Mac)
	}
}

func resultListsAddresses(l *lab) {
	a := l.attach()
	var raw struct {
		IPs []struct {
			Address   string `json:"address"`
			Interface *int   `json:"interface"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(a.result, &raw); err != nil {
		l.fail("%v: %s", err, short(a.result))
	}
	if len(raw.IPs) == 0 && len(a.prev) == 0 {
		l.saw("no address is assigned")
	}
	for _, ip := range raw.IPs {
		if _, err := netip.ParsePrefix(ip.Address); err != nil {
			l.fail("address %q is not one in CIDR notation", ip.Address)
		}
	}
	result := l.read(a.result)
	for _, ip := range result.IPs {
		if ip.Interface == nil {
			continue
		}
		if *ip.Interface < 0 || *ip.Interface >= len(result.Interfaces) {
			l.fail("interface %d of %s is not one of the %d", *ip.Interface, ip.Address.String(), len(result.Interfaces))
		}
		if i := result.Interfaces[*ip.Interface]; i.Sandbox == a.netns && !l.hasAddress(a.container, i.Name, ip.Address) {
			l.fail("%s does not have the address %s", i.Name, ip.Address.String())
		}
	}
	l.saw("%d addresses", len(raw.IPs))
}

func (l *lab) hasAddress(c *container, name string, want net.IPNet) bool {
	h, err := c.links()
	l.must(err)
	defer h.Close()
	link, err := h.LinkByName(name)
	l.must(err)
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	l.must(err)
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() })
}

// form is what gateway, routes and dns are to look like; unknown keys are no matter.
type form struct {
	IPs []struct {
		Address netip.Prefix `json:"address"`
		Gateway netip.Addr   `json:"gateway"`
	} `json:"ips"`
	Routes []struct {
		Dst netip.Prefix `json:"dst"`
		GW  netip.Addr   `json:"gw"`
	} `json:"routes"`
	DNS struct {
		Nameservers []netip.Addr `json:"nameservers"`
		Domain      string       `json:"domain"`
		Search      []string     `json:"search"`
		Options     []string     `json:"options"`
	} `json:"dns"`
}

func resultListsRoutes(l *lab) {
	a := l.attach()
	var f form
	if err := json.Unmarshal(a.result, &f); err != nil {
		l.fail("%v: %s", err, short(a.result))
	}
	for _, ip := range f.IPs {
		if ip.Gateway.IsValid() && !ip.Address.Contains(ip.Gateway) && ip.Address.Bits() != ip.Address.Addr().BitLen() {
			l.fail("the gateway %s is not in the network of %s", ip.Gateway, ip.Address)
		}
	}
	for _, r := range f.Routes {
		if r.Dst.Masked() != r.Dst {
			l.fail("route dst %s is an address, and not a network", r.Dst)
		}
		if !l.hasRoute(a.container, r.Dst) {
			l.fail("the container has no route to %s", r.Dst)
		}
	}
	l.saw("%d gateways or addresses, %d routes, %d name servers", len(f.IPs), len(f.Routes), len(f.DNS.Nameservers))
}

// routes are those of all tables of the container.
func (l *lab) routes(c *container) []netlink.Route {
	h, err := c.links()
	l.must(err)
	defer h.Close()
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: 0}, netlink.RT_FILTER_TABLE)
		l.must(err)
		all = append(all, routes...)
	}
	return all
}

func sameDestination(r netlink.Route, dst netip.Prefix) bool {
	if r.Dst == nil {
		return dst.Bits() == 0 && (r.Family == netlink.FAMILY_V4) == dst.Addr().Is4()
	}
	return r.Dst.String() == dst.String()
}

func (l *lab) hasRoute(c *container, dst netip.Prefix) bool {
	return slices.ContainsFunc(l.routes(c), func(r netlink.Route) bool { return sameDestination(r, dst) })
}

// upstream is a result of a plugin that has put another interface into the
// container.
func (l *lab) upstream(c *container, version string) *types100.Result {
	link := l.stranger(c, "net0")
	zero := 0
	address := net.IPNet{IP: net.IPv4(198, 51, 100, 7).To4(), Mask: net.CIDRMask(24, 32)}
	return &types100.Result{
		CNIVersion: version,
		Interfaces: []*interface100{{Name: "net0", Mac: link.Attrs().HardwareAddr.String(), Sandbox: c.path}},
		IPs:        []*ipConfig100{{Interface: &zero, Address: address, Gateway: net.IPv4(198, 51, 100, 1).To4()}},
		Routes:     []*types.Route{{Dst: net.IPNet{IP: net.IPv4(203, 0, 113, 0).To4(), Mask: net.CIDRMask(24, 32)}}},
		DNS:        types.DNS{Nameservers: []string{"192.0.2.53"}},
	}
}

// preceded is an attachment with a prevResult: that of the plugins before this one,
// or an upstream's.
func (l *lab) preceded() *attachment {
	c := l.newContainer()
	a := l.newAttachment(withContainer(c))
	if a.prev == nil {
		a.prev = l.inVersion(l.upstream(c, a.version), a.version)
	}
	return a
}

func prevResultPassedOn(l *lab) {
	if l.network.version < "0.3.0" {
		l.inapplicable("0.3.0 brought prevResult")
	}
	a := l.preceded()
	l.succeeds(a.add())
	before, after := l.read(a.prev), l.read(a.result)
	for _, i := range before.Interfaces {
		if !slices.ContainsFunc(after.Interfaces, func(o *interface100) bool { return o.Name == i.Name && o.Sandbox == i.Sandbox }) {
			l.fail("the interface %s of prevResult is not in the result %s", i.Name, short(a.result))
		}
	}
	for _, ip := range before.IPs {
		if !slices.ContainsFunc(after.IPs, func(o *ipConfig100) bool { return o.Address.String() == ip.Address.String() }) {
			l.fail("the address %s of prevResult is not in the result %s", ip.Address.String(), short(a.result))
		}
	}
	l.saw("%d interfaces and %d addresses of prevResult, %d and %d in the result", len(before.Interfaces), len(before.IPs), len(after.Interfaces), len(after.IPs))
}

func prevResultUnchanged(l *lab) {
	if !l.network.chained() {
		l.inapplicable("the plugin makes an interface, which its result shows")
	}
	a := l.attach()
	before, after := l.read(a.prev), l.read(a.result)
	if !reflect.DeepEqual(before, after) {
		l.fail("without anything to change, prevResult %s became %s", short(a.prev), short(a.result))
	}
}

func firstOfChain(l *lab) {
	if !l.network.chained() {
		l.succeeds(l.newAttachment().add())
		return
	}
	c := l.newContainer()
	a := &attachment{l: l, id: "alone", ifName: "eth0", container: c, netns: c.path, version: l.network.version, conf: l.network.subject}
	o := a.add()
	if o.ok() {
		l.saw("it works without prevResult")
		return
	}
	l.fails(o, "without prevResult:")
	if !o.says("prevResult") && !o.says("chain") {
		l.fail("the message names neither prevResult nor the chain: %s", o)
	}
	l.saw("%s", o)
}

// versionsFrom are the versions that both the plugin and the suite know.
func (l *lab) versionsFrom(least string) []string {
	var all []string
	for _, v := range []string{"0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if v >= least && l.speaks(v) {
			all = append(all, v)
		}
	}
	return all
}

func olderPrevResult(l *lab) {
	a := l.attach()
	if l.network.version < "0.4.0" {
		l.inapplicable("0.4.0 brought prevResult of CHECK and DEL")
	}
	result := l.read(a.result)
	for _, v := range []string{"0.3.1", "0.4.0"} {
		old := l.inVersion(result, v)
		if o := a.call("CHECK", key("prevResult", old)); !o.ok() {
			l.fail("with a prevResult of %s: %s", v, o)
		}
	}
	old := l.inVersion(result, "0.4.0")
	l.succeeds(a.call("DEL", key("prevResult", old)))
	if l.network.chained() {
		a.finish()
		again := l.newAttachment()
		again.prev = l.inVersion(l.read(again.prev), "0.4.0")
		l.succeeds(again.add())
	}
}

func resultInEachVersion(l *lab) {
	least := "0.2.0"
	if l.network.chained() {
		least = "0.3.1" // 0.3.0 brought chaining
	}
	versions := l.versionsFrom(least)
	if len(versions) == 0 {
		l.fail("it lists %v, and none of 0.2.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0", l.supported())
	}
	for _, v := range versions {
		a := l.newAttachment(withVersion(v))
		if o := a.add(); !o.ok() {
			l.fail("in version %s: %s", v, o)
		}
		l.rightForm(v, a.result)
		a.takeDown()
	}
	l.saw("%s", strings.Join(versions, ", "))
}

// rightForm makes sure that a result has what its version has, and no more.
func (l *lab) rightForm(version string, raw json.RawMessage) {
	if version == "0.2.0" {
		l.oldResult(raw)
		return
	}
	var r struct {
		CNIVersion string   `json:"cniVersion"`
		Interfaces []object `json:"interfaces"`
		IPs        []object `json:"ips"`
	}
	if err := json.Unmarshal(raw, &r); err != nil || r.CNIVersion != version {
		l.fail("not a result of %s: %s", version, short(raw))
	}
	for _, ip := range r.IPs {
		_, has := ip["version"]
		if want := version < "1.0.0"; has != want {
			l.fail("version of ips is there: %v, in a result of %s: %s", has, version, short(raw))
		}
	}
	for _, i := range r.Interfaces {
		for _, name := range []string{"mtu", "socketPath", "pciID"} {
			if _, has := i[name]; has && version < "1.0.0" {
				// Within a major version what is newer does no harm (S1).
				l.fail("%s of an interface, which 1.1.0 brought, in a result of %s: %s", name, version, short(raw))
			}
		}
	}
}

// newFields are a route with all that 1.1.0 brought.
func newFields() *types.Route {
	table, scope := 100, 0
	return &types.Route{
		Dst: net.IPNet{IP: net.IPv4(203, 0, 113, 0).To4(), Mask: net.CIDRMask(24, 32)},
		MTU: 1280, AdvMSS: 1200, Priority: 77, Table: &table, Scope: &scope,
	}
}

func fieldsSurvive(l *lab) {
	l.needs("1.1.0", "these fields")
	var a *attachment
	var wantInterfaces bool
	if l.job.DelegateKey != "" {
		d := l.delegate(script{script: scripted.Script{Routes: []*types.Route{newFields()}, Device: true}})
		a = d.attachment(withVersion("1.1.0"))
		wantInterfaces = !l.isOne() // an IPAM plugin tells of no interface
	} else {
		a = l.preceded()
		a.version = "1.1.0"
		prev := l.read(a.prev)
		for _, i := range prev.Interfaces {
			i.Mtu, i.SocketPath, i.PciID = 1400, "/run/vhost.sock", "0000:04:00.5"
		}
		prev.Routes = append(prev.Routes, newFields())
		a.prev = l.inVersion(prev, "1.1.0")
		wantInterfaces = true
	}
	l.succeeds(a.add())
	result := l.read(a.result)
	want := newFields()
	if !slices.ContainsFunc(result.Routes, func(r *types.Route) bool {
		return r.Dst.String() == want.Dst.String() && r.MTU == want.MTU && r.AdvMSS == want.AdvMSS && r.Priority == want.Priority &&
			r.Table != nil && *r.Table == *want.Table && r.Scope != nil && *r.Scope == *want.Scope
	}) {
		l.fail("the route's mtu, advmss, priority, table and scope did not survive: %s", short(a.result))
	}
	if wantInterfaces && !slices.ContainsFunc(result.Interfaces, func(i *interface100) bool {
		return i.Mtu == 1400 && i.SocketPath == "/run/vhost.sock" && i.PciID == "0000:04:00.5"
	}) {
		l.fail("mtu, socketPath and pciID of an interface did not survive: %s", short(a.result))
	}
}

// unprinted has ADD fail as late as it can: its result cannot be printed.
func unprinted(l *lab) (edit, func()) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	l.must(err)
	return func(r *request) { r.stdout = full }, func() { full.Close() }
}

func failedADDLeavesNothing(l *lab) {
	l.warm()
	if l.job.DelegateKey != "" {
		l.failedDelegate()
	}
	a := l.newAttachment(withPorts)
	before := l.snapshot(a.container)
	unprintable, done := unprinted(l)
	defer done()
	o := a.call("ADD", unprintable)
	if o.ok() {
		l.fail("ADD succeeded although its result could not be printed (standard output was /dev/full)")
	}
	l.unchanged(before, "after an ADD whose result could not be printed", a.container)
	l.saw("an ADD whose result could not be printed left nothing")
}

// failedDelegate has the last delegate fail.
func (l *lab) failedDelegate() {
	last := script{script: scripted.Script{Fail: map[string]uint{"ADD": 123}, Late: true}}
	scripts := []script{last}
	if !l.isOne() {
		scripts = []script{{}, {kind: "delegate-b", script: last.script}}
	}
	d := l.delegate(scripts...)
	a := d.attachment()
	before := l.snapshot(a.container)
	o := a.add()
	l.expect(o, 123)
	if n := len(d.calls("DEL")); n < len(scripts) {
		l.fail("a delegate failed, and %d of %d delegates got a DEL (S4)", n, len(scripts))
	}
	l.unchanged(before, "after an ADD that a delegate failed", a.container)
	l.saw("an ADD that a delegate failed left nothing")
}

func secondADD(l *lab) {
	a := l.attach(withPorts)
	before := l.snapshot(a.container)
	o := a.call("ADD")
	if o.ok() && !l.network.chained() {
		l.fail("the second ADD succeeded")
	}
	l.saw("the second ADD: %s", o)
	if !o.ok() {
		l.fails(o, "the second ADD:")
		l.unchanged(before, "after the second ADD, which failed,", a.container)
	}
	if a.version >= "0.4.0" {
		if e := a.checked(); e != nil {
			l.fail("after the second ADD the first attachment is not in order: %v", e)
		}
	}
}

func twoInterfaces(l *lab) {
	c := l.newContainer()
	one := l.attach(withContainer(c), withPorts)
	two := l.newAttachment(withContainer(c), withIfName("eth1"), withPorts)
	if o := two.add(); !o.ok() {
		l.fail("as eth1: %s", o)
	}
	for _, a := range []*attachment{one, two} {
		if l.link(c, a.ifName) == nil {
			l.fail("%s is not there", a.ifName)
		}
		if a.version >= "0.4.0" {
			if e := a.checked(); e != nil {
				l.fail("%s of two: %v", a.ifName, e)
			}
		}
	}
	two.takeDown()
	if l.link(c, "eth0") == nil {
		l.fail("DEL of eth1 took eth0 away")
	}
	if one.version >= "0.4.0" {
		if e := one.checked(); e != nil {
			l.fail("DEL of eth1 harmed eth0: %v", e)
		}
	}
}

func addsSideBySide(l *lab) {
	l.warm()
	before := l.snapshot()
	attachments := make([]*attachment, l.job.Attachments)
	for i := range attachments {
		attachments[i] = l.newAttachment(withPorts)
	}
	outcomes := sideBySide(attachments, func(a *attachment) outcome { return a.add() })
	for _, o := range outcomes {
		l.succeeds(o)
	}
	l.distinct(attachments)
	for i, o := range sideBySide(attachments, func(a *attachment) outcome { return a.call("DEL") }) {
		l.succeeds(o)
		attachments[i].finish()
		attachments[i].container.destroy()
	}
	l.unchanged(before, fmt.Sprintf("after %d ADDs and DELs side by side", len(attachments)))
	l.saw("%d ADDs and DELs side by side", len(attachments))
}

// sideBySide makes a call for each attachment, ten at a time.
func sideBySide(attachments []*attachment, call func(*attachment) outcome) []outcome {
	outcomes := make([]outcome, len(attachments))
	slots := make(chan struct{}, 10)
	var group sync.WaitGroup
	for i, a := range attachments {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			outcomes[i] = call(a)
		})
	}
	group.Wait()
	return outcomes
}

// distinct fails when two containers of one network have the same address. Containers
// without an interface on the host share no network.
func (l *lab) distinct(attachments []*attachment) {
	owner := map[string]string{}
	for _, a := range attachments {
		result := l.read(a.result)
		if !slices.ContainsFunc(result.Interfaces, func(i *interface100) bool { return i.Sandbox == "" }) {
			continue
		}
		for _, ip := range a.own() {
			if other, is := owner[ip.Address.IP.String()]; is {
				l.fail("%s and %s have both got %s", other, a.id, ip.Address.IP)
			}
			owner[ip.Address.IP.String()] = a.id
		}
	}
}

// kills is how many moments of a verb are tried.
const kills = 10

func killedADD(l *lab) {
	l.warm()
	before := l.snapshot()
	took := l.duration("ADD")
	for n := range kills {
		a := l.newAttachment(withPorts)
		a.call("ADD", func(r *request) {
			r.during = func(p *os.Process) {
				// Nothing is measured: any moment is a good one.
				time.Sleep(took * time.Duration(2*n+1) / (2 * kills))
				_ = p.Kill()
			}
		})
		if o := a.call("DEL"); !o.ok() {
			l.fail("killed at moment %d of %d: %s", n+1, kills, o)
		}
		a.finish()
		a.container.destroy()
		l.unchanged(before, fmt.Sprintf("killed at moment %d of %d, and after DEL,", n+1, kills))
	}
	l.saw("%d moments of %s", kills, took.Round(time.Millisecond))
}

// duration is about how long a verb takes.
func (l *lab) duration(verb string) time.Duration {
	a := l.newAttachment(withPorts)
	started := time.Now()
	a.mustAdd()
	took := time.Since(started)
	if verb == "DEL" {
		started = time.Now()
	}
	a.mustDel()
	if verb == "DEL" {
		took = time.Since(started)
	}
	a.finish()
	a.container.destroy()
	return took
}

// firewallPrograms are the ones that portmappers run.
var firewallPrograms = []string{
	"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft", "nft", "ebtables", "ipset", "firewall-cmd",
}

// watchFirewall puts a script before each firewall program, which writes its name
// down. The programs look at the name they are called by, so the real ones are kept
// under all names.
func (l *lab) watchFirewall() (started func() []string) {
	log, dir := stage+"/firewall.log", stage+"/firewall"
	l.must(os.WriteFile(log, nil, 0o666))
	l.must(os.Chmod(log, 0o666))
	l.must(os.MkdirAll(dir, 0o755))
	var covered []string
	for _, name := range firewallPrograms {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		real, err := filepath.EvalSymlinks(path)
		l.must(err)
		kept := filepath.Join(dir, "real-"+filepath.Base(real))
		if !slices.Contains(covered, real) {
			l.must(copyFile(real, kept))
			covered = append(covered, real)
		}
		l.must(os.Symlink(kept, filepath.Join(dir, name)))
	}
	watcher := stage + "/watcher"
	text := fmt.Sprintf("#!/bin/sh\necho \"${0##*/} $*\" >>%s\nexec %s/\"${0##*/}\" \"$@\"\n", log, dir)
	l.must(os.WriteFile(watcher, []byte(text), 0o755))
	for _, real := range covered {
		l.must(unix.Mount(watcher, real, "", unix.MS_BIND, ""))
	}
	return func() []string {
		text, err := os.ReadFile(log)
		l.must(err)
		l.must(os.WriteFile(log, nil, 0o666))
		return slices.Collect(strings.Lines(string(text)))
	}
}

func noFirewallWithoutPorts(l *lab) {
	l.needsPorts()
	options := []option{}
	if l.job.DelegateKey != "" && !l.isOne() {
		// Delegates may start what they like.
		options = append(options, withConf(l.delegate(script{}).conf))
	}
	started := l.watchFirewall()
	for _, config := range []object{nil, object{}.with("portMappings", []portMapping{})} {
		a := l.newAttachment(append(options, withRuntime(config))...)
		started()
		for _, verb := range []string{"ADD", "CHECK", "DEL"} {
			if verb == "CHECK" && a.version < "0.4.0" {
				continue
			}
			o := a.call(verb)
			l.succeeds(o)
			if verb == "ADD" {
				a.result = o.stdout
			}
			if ran := started(); len(ran) > 0 {
				l.fail("%s without a port started %s", verb, short([]byte(strings.Join(ran, ""))))
			}
		}
	}
}

func ports(mappings ...map[string]any) option {
	return withRuntime(object{}.with("portMappings", mappings))
}

func mapping(hostPort, containerPort int, protocol string) map[string]any {
	return map[string]any{"hostPort": hostPort, "containerPort": containerPort, "protocol": protocol}
}

func badPort(l *lab) {
	l.needsPorts()
	for name, o := range map[string]option{
		"hostPort 70000":         ports(mapping(70000, 80, "tcp")),
		"containerPort 70000":    ports(mapping(20001, 70000, "tcp")),
		"hostPort -1":            ports(mapping(-1, 80, "tcp")),
		"containerPort 0":        ports(mapping(20001, 0, "tcp")),
		"the same mapping twice": ports(mapping(20001, 80, "tcp"), mapping(20001, 81, "tcp")),
	} {
		a := l.newAttachment(o)
		if got := a.add(); got.code() != int(types.ErrInvalidNetworkConfig) {
			l.fail("%s: expected an error of code 7: %s", name, got)
		}
		a.finish()
	}
	l.zeroPort()
}

// zeroPort makes sure that hostPort 0 is refused or not published. Nothing in the
// specification or the conventions says which: Kubernetes sends it for a port that is
// not published.
func (l *lab) zeroPort() {
	a := l.newAttachment(ports(mapping(0, 80, "tcp")))
	before := l.listening()
	o := a.add()
	if !o.ok() {
		l.expect(o, types.ErrInvalidNetworkConfig)
		l.saw("hostPort 0 is refused: %s", o)
		return
	}
	if after := l.listening(); after != before {
		l.fail("hostPort 0 was published: %s", oneLine(after))
	}
	l.saw("hostPort 0, which the specification leaves open, is not published")
	a.takeDown()
}

// listening are the host's listening sockets, as text.
func (l *lab) listening() string {
	out, err := exec.Command("ss", "-Hlntu").Output()
	l.must(err)
	return string(out)
}

func badProtocol(l *lab) {
	l.needsPorts()
	for _, protocol := range []string{"dccp", "icmp", "nonsense"} {
		a := l.newAttachment(ports(mapping(20001, 80, protocol)))
		o := a.add()
		l.expect(o, types.ErrUnsupportedField, types.ErrInvalidNetworkConfig)
		if !o.says(protocol) {
			l.fail("the message does not name %s: %s", protocol, o)
		}
		a.finish()
	}
}

func missingDelegate(l *lab) {
	scripts := []script{{kind: "no-such-plugin"}}
	if l.job.DelegateKey != "" && !l.isOne() {
		scripts = []script{{}, {kind: "no-such-plugin"}}
	}
	d := l.delegate(scripts...)
	o := d.attachment().add()
	l.fails(o, "without the delegate's binary:")
	if !o.says("no-such-plugin") {
		l.fail("the message does not name it: %s", o)
	}
	if n := len(d.calls("ADD")); n > 0 {
		l.fail("another delegate ran before")
	}
	l.saw("%s", o)
}
