package scripted

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nsfsMagic is the kind of file system that namespaces are files of (statfs(2)).
const nsfsMagic = 0x6e736673

// rightNamespace makes sure that CNI_NETNS is a namespace and not our own.
func (p *plugin) rightNamespace(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Type != nsfsMagic {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q is not a network namespace", path), "")
	}
	theirs, err := os.Stat(path)
	if err != nil {
		return err
	}
	ours, err := os.Stat("/proc/self/ns/net")
	if err == nil && os.SameFile(theirs, ours) && !p.broken("own-namespace") {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q is the plugin's own namespace", path), "")
	}
	return err
}

// inside returns a handle for the links of a namespace.
func inside(path string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("CNI_NETNS %q: %w", path, err)
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

func (p *plugin) nameFree(args *skel.CmdArgs) error {
	h, err := inside(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(args.IfName)
	switch {
	case isMissing(err):
		return nil
	case err != nil:
		return err
	case p.broken("takes-over"):
		return h.LinkDel(link)
	}
	return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_IFNAME %q is there already", args.IfName), "")
}

// makeInterface makes the veth pair, with the address and the default route.
func (p *plugin) makeInterface(args *skel.CmdArgs, a *attachment) (*types100.Result, error) {
	addressed, err := p.address(args, a)
	if err != nil {
		return nil, err
	}
	ns, err := netns.GetFromPath(args.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.hostLink()
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: args.IfName, PeerNamespace: netlink.NsFd(int(ns))}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("veth pair: %w", err)
	}
	host, err := netlink.LinkByName(a.hostLink())
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return nil, err
	}
	if err := netlink.AddrAdd(host, &netlink.Addr{IPNet: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}}); err != nil {
		return nil, err
	}
	for _, ip := range addressed.IPs {
		dst := &net.IPNet{IP: ip.Address.IP, Mask: net.CIDRMask(32, 32)}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
			return nil, err
		}
	}
	link, err := configure(args, addressed)
	if err != nil {
		return nil, err
	}
	a.MAC = link.Attrs().HardwareAddr.String()
	return p.result(args, host, link, addressed), nil
}

// configure sets the container's end up.
func configure(args *skel.CmdArgs, addressed *types100.Result) (netlink.Link, error) {
	h, err := inside(args.Netns)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(args.IfName)
	if err != nil {
		return nil, err
	}
	for _, ip := range addressed.IPs {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &ip.Address}); err != nil {
			return nil, err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, err
	}
	for _, r := range addressed.Routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &r.Dst, Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.GW == nil {
			route.Gw = gateway
		}
		if err := h.RouteAppend(route); err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Dst.String(), err)
		}
	}
	return link, nil
}

func (p *plugin) result(args *skel.CmdArgs, host, link netlink.Link, addressed *types100.Result) *types100.Result {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: addressed.Routes, DNS: p.conf.DNS}
	index := 0
	if !p.broken("hides-host-link") {
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: host.Attrs().Name, Mac: host.Attrs().HardwareAddr.String()})
		index = 1
	}
	in := &types100.Interface{Name: args.IfName, Mac: link.Attrs().HardwareAddr.String(), Mtu: link.Attrs().MTU, Sandbox: args.Netns}
	if p.broken("other-sandbox") {
		in.Sandbox = "/proc/self/ns/net"
	}
	if p.conf.Script.Device {
		in.Mtu, in.SocketPath, in.PciID = 1400, "/run/vhost.sock", "0000:04:00.5"
	}
	r.Interfaces = append(r.Interfaces, in)
	for _, ip := range addressed.IPs {
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: &index, Address: ip.Address, Gateway: ip.Gateway})
	}
	return r
}

func deleteHostLink(name string) error {
	link, err := netlink.LinkByName(name)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// The kernel may be taking it away itself, with the namespace of its other end.
	if err := netlink.LinkDel(link); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func deleteInside(path, name string) error {
	h, err := inside(path)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkDel(link)
}

// checkInterface compares prevResult with the kernel.
func (p *plugin) checkInterface(args *skel.CmdArgs, a *attachment, prev *types100.Result) error {
	wrong := func(format string, v ...any) error { return types.NewError(100, fmt.Sprintf(format, v...), "") }
	if !slices.ContainsFunc(prev.Interfaces, func(i *types100.Interface) bool { return i.Name == args.IfName && i.Sandbox == args.Netns }) {
		return wrong("prevResult has no %s in %s", args.IfName, args.Netns)
	}
	if _, err := netlink.LinkByName(a.hostLink()); err != nil {
		return wrong("host interface: %v", err)
	}
	h, err := inside(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(args.IfName)
	if err != nil {
		return wrong("%s: %v", args.IfName, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return wrong("%s is down", args.IfName)
	}
	if p.broken("own-mac") && link.Attrs().HardwareAddr.String() != a.MAC {
		return wrong("%s has another MAC address", args.IfName)
	}
	if err := checkAddresses(h, link, args, prev); err != nil {
		return err
	}
	return p.checkRoutes(h, prev)
}

func checkAddresses(h *netlink.Handle, link netlink.Link, args *skel.CmdArgs, prev *types100.Result) error {
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, ip := range prev.IPs {
		if ip.Interface == nil || prev.Interfaces[*ip.Interface].Name != args.IfName {
			continue
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == ip.Address.String() }) {
			return types.NewError(100, fmt.Sprintf("the address %s is missing", ip.Address.String()), "")
		}
	}
	return nil
}

func (p *plugin) checkRoutes(h *netlink.Handle, prev *types100.Result) error {
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, want := range prev.Routes {
		found := slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == want.Dst.String() })
		if !found && want.Table == nil {
			return types.NewError(100, fmt.Sprintf("the route to %s is missing", want.Dst.String()), "")
		}
	}
	if p.broken("only-own-routes") && len(routes) > len(prev.Routes)+1 {
		return types.NewError(100, "there are routes that are not in prevResult", "")
	}
	return nil
}

// printWithoutVersion prints a result without its cniVersion.
func printWithoutVersion(result types.Result) error {
	raw, err := json.Marshal(result)
	if err != nil {
		return err
	}
	var o map[string]json.RawMessage
	if err := json.Unmarshal(raw, &o); err != nil {
		return err
	}
	delete(o, "cniVersion")
	return json.NewEncoder(os.Stdout).Encode(o)
}
