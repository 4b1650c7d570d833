package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect CONTAINER…",
		Short: "show all about a container, and what is wrong",
		Long: `Show all that is known of a container's attachments: addresses, gateway, MAC
address, routes, name servers, published ports, namespace, and what keeps the
network up. It looks into the namespace and says what is not as it should be.

CONTAINER is a container ID, the beginning of one, or NETWORK/CONTAINER/IFNAME.`,
		Example:           "  ambi inspect 3f2a\n  ambi inspect web/3f2a91c0/eth0 --json",
		Args:              arguments(1, 0, "CONTAINER"),
		ValidArgsFunction: a.completeContainers,
		RunE: func(c *cobra.Command, args []string) error {
			return a.inspect(c.Context(), args)
		},
	}
}

// inspected is one attachment in the JSON of inspect.
type inspected struct {
	conf.Key
	Mode       conf.Mode         `json:"mode,omitempty"`
	State      state             `json:"state"`
	Problems   []problem         `json:"problems"`
	Created    *time.Time        `json:"created,omitempty"`
	Netns      *record.Netns     `json:"netns,omitempty"`
	Interface  *interfaceInfo    `json:"interface,omitempty"`
	IPv4       *familyInfo       `json:"ipv4"`
	IPv6       *familyInfo       `json:"ipv6"`
	Routes     []routeInfo       `json:"routes"`
	DNS        *types.DNS        `json:"dns,omitempty"`
	Names      []string          `json:"names,omitempty"`
	NameServer *nameServerInfo   `json:"nameServer,omitempty"`
	Ports      []port            `json:"ports"`
	Supervisor *supervisorInfo   `json:"supervisor,omitempty"`
	Hub        string            `json:"hub,omitempty"`
	Delegates  []string          `json:"delegates,omitempty"`
	Bridge     string            `json:"bridge,omitempty"`
	Firewall   string            `json:"firewall,omitempty"`
	Files      map[string]string `json:"files"`
}

type interfaceInfo struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
	MTU  int    `json:"mtu"`
}

// familyInfo is one address family: the first address, and the others.
type familyInfo struct {
	Address      string        `json:"address"`
	PrefixLength int           `json:"prefixLength"`
	Gateway      string        `json:"gateway,omitempty"`
	Secondary    []addressInfo `json:"secondary"`
}

type addressInfo struct {
	Address      string `json:"address"`
	PrefixLength int    `json:"prefixLength"`
}

type routeInfo struct {
	Destination string `json:"destination"`
	Gateway     string `json:"gateway,omitempty"`
}

type supervisorInfo struct {
	PID    int         `json:"pid"`
	Keeper int         `json:"keeper,omitempty"` // the process that starts it again; absent while there is none
	Since  *time.Time  `json:"since,omitempty"`  // absent when it does not answer
	Driver *driverInfo `json:"driver,omitempty"`
	// WayOut counts what leaves by the driver; absent where nobody does.
	WayOut *supervisor.WayOut `json:"wayOut,omitempty"`
}

// nameServerInfo is the name server of a network as root.
type nameServerInfo struct {
	PID int `json:"pid"`
}

type driverInfo struct {
	Name      string `json:"name"`
	PID       int    `json:"pid"` // 0 while it is down
	Restarts  int    `json:"restarts"`
	LastError string `json:"lastError,omitempty"`
	OpenFiles int    `json:"openFiles,omitempty"` // 0 where that cannot be seen
	MostFiles int    `json:"mostFiles,omitempty"`
}

func (a *app) inspect(ctx context.Context, args []string) error {
	all, err := a.attachments(args)
	if err != nil {
		return err
	}
	done := a.progress("looking into %d attachments", len(all))
	lookAll(ctx, all, func(t *attachment, ctx context.Context) {
		t.look(ctx)
		t.lookInside(ctx)
	})
	done()
	infos := make([]inspected, len(all))
	for i, t := range all {
		infos[i] = inspectedOf(t)
	}
	if a.json {
		return printJSON(a.out, infos)
	}
	for i := range infos {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		a.show(all[i], &infos[i])
	}
	return nil
}

func inspectedOf(t *attachment) inspected {
	info := inspected{
		Key: t.Key, State: t.state, Problems: notNil(t.problems), Ports: jsonPorts(t.ports()), Routes: []routeInfo{},
		Files: map[string]string{"record": t.store.Path(t.Key, "json")},
	}
	r := t.record
	if r == nil {
		return info
	}
	info.Mode, info.Created, info.Netns = r.Mode, &r.Created, &r.Netns
	info.Names = namesOf(r)
	info.IPv4, info.IPv6 = familyOf(t.ips(), netip.Addr.Is4), familyOf(t.ips(), netip.Addr.Is6)
	if t.result != nil {
		if i := conf.InterfaceOf(t.result, t.IfName); i != nil {
			info.Interface = &interfaceInfo{i.Name, i.Mac, i.Mtu}
		}
		info.DNS = &t.result.DNS
		for _, route := range t.result.Routes {
			x := routeInfo{Destination: route.Dst.String()}
			if route.GW != nil {
				x.Gateway = route.GW.String()
			}
			info.Routes = append(info.Routes, x)
		}
	}
	if t.rootless() {
		info.Supervisor = supervisorOf(t)
		info.Files["log"] = t.network().LogFile(t.Key)
		info.Bridge = r.Bridge
		if t.shared() {
			info.Hub = r.Hub
		}
	} else {
		info.Delegates, info.Bridge = delegatesOf(r), r.Bridge
		if place, ok := placeOf(t.store, r); ok {
			if s := place.Running(); s != nil {
				info.NameServer = &nameServerInfo{s.PID}
				info.Files["nameServerLog"] = place.LogFile()
			}
		}
		if r.Published != nil {
			info.Firewall = string(r.Published.Backend)
		}
	}
	return info
}

// ipConfig is one address of the container's interface.
type ipConfig struct {
	prefix  netip.Prefix
	gateway netip.Addr // invalid without one
}

// ips are the addresses of the attachment's interface in the result.
func (t *attachment) ips() []ipConfig {
	if t.result == nil {
		return nil
	}
	var out []ipConfig
	for _, ip := range conf.AddressesOf(t.result, t.IfName) {
		addr, valid := netip.AddrFromSlice(ip.Address.IP)
		if !valid {
			continue
		}
		bits, _ := ip.Address.Mask.Size()
		gateway, _ := netip.AddrFromSlice(ip.Gateway)
		out = append(out, ipConfig{netip.PrefixFrom(addr.Unmap(), bits), gateway.Unmap()})
	}
	return out
}

func familyOf(ips []ipConfig, is func(netip.Addr) bool) *familyInfo {
	var f *familyInfo
	for _, ip := range ips {
		switch {
		case !is(ip.prefix.Addr()):
		case f == nil:
			f = &familyInfo{Address: ip.prefix.Addr().String(), PrefixLength: ip.prefix.Bits(), Secondary: []addressInfo{}}
			if ip.gateway.IsValid() {
				f.Gateway = ip.gateway.String()
			}
		default:
			f.Secondary = append(f.Secondary, addressInfo{ip.prefix.Addr().String(), ip.prefix.Bits()})
		}
	}
	return f
}

func supervisorOf(t *attachment) *supervisorInfo {
	switch {
	case t.status != nil:
		d := t.status.Driver
		return &supervisorInfo{
			PID: t.status.PID, Keeper: t.status.Keeper, Since: &t.status.Since, WayOut: t.status.WayOut,
			Driver: &driverInfo{Name: d.Name, PID: d.PID, Restarts: d.Restarts, LastError: d.Error, OpenFiles: d.OpenFiles, MostFiles: d.MostFiles},
		}
	case t.record.Supervisor != nil:
		if pid := t.network().Supervisor(); pid != 0 {
			return &supervisorInfo{PID: pid}
		}
	}
	return nil
}

func delegatesOf(r *record.Record) []string {
	var types []string
	for _, raw := range r.Delegates {
		if d, err := conf.ParseDelegate("", raw); err == nil {
			types = append(types, d.Type)
		}
	}
	return types
}

// show prints one attachment for people.
func (a *app) show(t *attachment, info *inspected) {
	fmt.Fprintln(a.out, a.screen.paint(bold, printable(t.String())))
	word, how := t.word()
	a.field("state", a.screen.paint(how, word))
	for _, p := range info.Problems {
		a.field("", a.screen.wrapped(p.Text, fieldIndent))
		if p.Remedy != "" {
			a.field("", "mend: "+printable(p.Remedy))
		}
	}
	if t.record != nil {
		a.field("mode", string(info.Mode))
		a.field("made", fmt.Sprintf("%s ago (%s)", ageText(time.Since(*info.Created)), info.Created.Format(time.RFC3339)))
		a.field("namespace", printable(info.Netns.Path))
		a.showInterface(info)
		a.showPorts(t)
		a.showMeans(info)
	}
	for _, name := range []string{"log", "record"} {
		if path := info.Files[name]; path != "" {
			a.field(name, printable(path))
		}
	}
}

const fieldIndent = 13

func (a *app) field(name, value string) {
	if value == "" {
		return
	}
	fmt.Fprintf(a.out, "  %-*s%s\n", fieldIndent-2, name, value)
}

func (a *app) showInterface(info *inspected) {
	if i := info.Interface; i != nil {
		a.field("interface", strings.TrimSpace(printable(i.Name+"  "+i.MAC)+mtuText(i.MTU)))
	}
	a.showFamily("IPv4", info.IPv4)
	a.showFamily("IPv6", info.IPv6)
	for i, r := range info.Routes {
		name := ""
		if i == 0 {
			name = "routes"
		}
		a.field(name, r.Destination+via(r.Gateway))
	}
	if d := info.DNS; d != nil {
		a.field("DNS", printable(strings.Join(d.Nameservers, ", ")))
		a.field("search", printable(strings.Join(d.Search, " ")))
	}
	a.field("names", a.screen.wrapped(printable(strings.Join(info.Names, ", ")), fieldIndent))
}

func mtuText(mtu int) string {
	if mtu == 0 {
		return ""
	}
	return "  MTU " + strconv.Itoa(mtu)
}

func via(gateway string) string {
	if gateway == "" {
		return ""
	}
	return " via " + gateway
}

func (a *app) showFamily(name string, f *familyInfo) {
	if f == nil {
		return
	}
	text := fmt.Sprintf("%s/%d", f.Address, f.PrefixLength)
	if f.Gateway != "" {
		text += ", gateway " + f.Gateway
	}
	a.field(name, text)
	for _, s := range f.Secondary {
		a.field("", fmt.Sprintf("%s/%d", s.Address, s.PrefixLength))
	}
}

func (a *app) showPorts(t *attachment) {
	name := "ports"
	for _, m := range t.ports() {
		a.field(name, m.String())
		name = ""
	}
}

// showMeans is what keeps the network up.
func (a *app) showMeans(info *inspected) {
	if s := info.Supervisor; s != nil {
		text := fmt.Sprintf("process %d", s.PID)
		if s.Since != nil {
			text += ", running for " + ageText(time.Since(*s.Since))
		}
		if s.Keeper != 0 {
			text += fmt.Sprintf(", kept by process %d", s.Keeper)
		}
		a.field("supervisor", text)
		a.showDriver(s.Driver)
		a.showWayOut(s.WayOut)
	}
	a.field("hub", info.Hub)
	a.field("bridge", info.Bridge)
	if s := info.NameServer; s != nil {
		a.field("nameserver", fmt.Sprintf("process %d", s.PID))
	}
	a.field("delegates", strings.Join(info.Delegates, ", "))
	a.field("firewall", info.Firewall)
}

func (a *app) showWayOut(w *supervisor.WayOut) {
	if w == nil {
		return
	}
	text := bytesText(w.BytesOut) + " out, " + bytesText(w.BytesIn) + " in"
	for _, n := range []struct {
		count *uint64
		what  string
	}{{w.Total, "flows"}, {w.Refused, "refused"}, {w.Dropped, "dropped"}} {
		if n.count != nil {
			text += fmt.Sprintf(", %d %s", *n.count, n.what)
		}
	}
	a.field("way out", a.screen.wrapped(text, fieldIndent))
}

func (a *app) showDriver(d *driverInfo) {
	if d == nil {
		return
	}
	text := fmt.Sprintf("%s, process %d", d.Name, d.PID)
	if d.PID == 0 {
		text = d.Name + ", down"
	}
	if d.OpenFiles > 0 {
		text += fmt.Sprintf(", %d of %d files open", d.OpenFiles, d.MostFiles)
	}
	if d.Restarts > 0 {
		text += fmt.Sprintf(", restarted %d times (last: %s)", d.Restarts, d.LastError)
	}
	a.field("driver", a.screen.wrapped(text, fieldIndent))
}
