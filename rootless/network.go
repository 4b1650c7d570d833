package rootless

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/plan"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// Network is the rootless network of one attachment.
type Network struct {
	Store  *record.Store
	Record *record.Record // of this attachment; nil on DEL without a readable one

	// Step is called at the end of each step of a verb with its name, for a log of
	// what took how long; nil: nobody listens.
	Step func(name string)

	// RuntimeDir is XDG_RUNTIME_DIR, below which there may be a manager of systemd; for ADD.
	RuntimeDir string

	outside bool // an ADD that has not come into its hub
}

// hub is the hub of the attachment: the one that the record names, else that which it would
// have for itself.
func (n *Network) hub(key conf.Key) hub.Hub {
	if n.Record != nil && n.Record.Hub != "" {
		return hub.Hub{Store: n.Store, Name: n.Record.Hub}
	}
	return hub.OfOne(n.Store, key)
}

// LogFile is the log of an attachment's supervisor.
func (n *Network) LogFile(key conf.Key) string { return n.hub(key).Path("log") }

func (n *Network) step(name string) {
	if n.Step != nil {
		n.Step(name)
	}
}

// Available says whether an ADD could work, as far as the host is concerned: code 50
// with the remedy otherwise.
func Available(r conf.Rootless, cacheDir string) error {
	_, program, err := driver.Choose(r, cacheDir)
	if err != nil {
		return err
	}
	_, err = program.Command(r, "")
	return err
}

// Add binds the host ports, connects the container with a hub, which it starts when there is
// none, and returns when the network is up. It saves the record before its first change, and
// notes hub and supervisor in it. After an error, Del cleans up.
func (n *Network) Add(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	if a.NetConf.Rootless.Network == conf.NetworkShared {
		return n.addShared(ctx, a)
	}
	return n.addPrivate(ctx, a)
}

// choose finds the driver, and works out how it is started and what the interface shall
// be.
func (n *Network) choose(a *conf.Attachment) (*driver.Command, *plan.Interface, error) {
	r := a.NetConf.Rootless
	d, program, err := driver.Choose(r, n.Store.Dir())
	if err != nil {
		return nil, nil, err
	}
	command, err := program.Command(r, a.IfName)
	if err != nil {
		return nil, nil, err
	}
	n.step("find " + d.Name())
	if err := unsupported(a, a.Ports...); err != nil {
		return nil, nil, err
	}
	p, err := program.Plan(a)
	if err != nil {
		return nil, nil, err
	}
	return command, p, nil
}

// unsupported refuses what the runtime asks for and this network cannot give,
// rather than leaving it out.
func unsupported(a *conf.Attachment, ports ...conf.PortMapping) error {
	for _, m := range ports {
		if m.Protocol == conf.SCTP {
			return conf.Mendf(conf.Unsupported("runtimeConfig.portMappings.protocol", m.Protocol, "without root only tcp and udp can be published"), "run as root for sctp")
		}
		if d := driver.Of(a.NetConf.Rootless.Driver); d.Publishes(a.NetConf.Rootless.PortHandler) {
			if _, err := d.Publishable(m); err != nil {
				return err
			}
		}
	}
	if a.NetConf.Rootless.Network != conf.NetworkShared && a.NetConf.RuntimeConfig.Wants("bandwidth") {
		return conf.Mendf(conf.Unsupported("runtimeConfig.bandwidth", a.NetConf.RuntimeConfig.Raw["bandwidth"], "the bandwidth of a private network cannot be limited"), "set rootless.network to shared, or take the capability bandwidth away")
	}
	return nil
}

// result is the attachment as the specification shows it (section 5, "Success").
func result(a *conf.Attachment, p *plan.Interface) *types100.Result {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: a.IfName, Mac: p.MAC, Mtu: p.MTU, Sandbox: a.NetnsPath}},
		DNS:        dns(a, p),
	}
	for _, f := range []plan.Subnet{p.IPv4, p.IPv6} {
		for _, address := range f.Addresses {
			r.IPs = append(r.IPs, &types100.IPConfig{
				Interface: types100.Int(0), Address: *plan.IPNet(address), Gateway: f.Gateway.AsSlice(),
			})
		}
		if f.Enabled() {
			r.Routes = append(r.Routes, &types.Route{Dst: *plan.Everywhere(f.Gateway), GW: net.IP(f.Gateway.AsSlice())})
		}
	}
	return r
}

// dns is what is asked for, else the driver's name server.
func dns(a *conf.Attachment, p *plan.Interface) types.DNS {
	d := a.NetConf.DNSFor(types.DNS{})
	if len(d.Nameservers) == 0 {
		for _, f := range []plan.Subnet{p.IPv4, p.IPv6} {
			if f.DNS.IsValid() {
				d.Nameservers = append(d.Nameservers, f.DNS.String())
			}
		}
	}
	return d
}

// recordedMAC is the MAC address that prevResult has for the container's interface,
// which a later plugin of the chain may have changed; empty when it has none. A
// prevResult whose interface is in another namespace is an error. CHECK has to consult
// it (specification section 2, "CHECK").
func recordedMAC(a *conf.Attachment) (string, error) {
	if a.NetConf.PrevResult == nil {
		return "", nil // "ambi inspect" has none
	}
	var prev struct {
		Interfaces []*struct {
			Name    string `json:"name"`
			MAC     string `json:"mac"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	}
	if err := json.Unmarshal(a.NetConf.PrevResult, &prev); err != nil {
		return "", conf.Errorf(types.ErrDecodingFailure, "key \"prevResult\": %v", err)
	}
	elsewhere := ""
	for _, i := range prev.Interfaces {
		switch {
		case i == nil || i.Name != a.IfName || i.Sandbox == "":
		case i.Sandbox == a.NetnsPath:
			return i.MAC, nil
		default:
			elsewhere = i.Sandbox
		}
	}
	if elsewhere != "" {
		return "", conf.Errorf(conf.ErrNetwork, "attachment %s: prevResult has its interface in %s, and CNI_NETNS is %s", a.Key, elsewhere, a.NetnsPath)
	}
	return "", nil
}

// Check compares hub and container with what ADD has made.
func (n *Network) Check(ctx context.Context, a *conf.Attachment) error {
	if n.Record == nil || !Alive(n.Store, n.Record) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "attachment %s: its supervisor is not running, so the container has no network", a.Key), "call DEL and ADD again")
	}
	if n.Record.Hub == "" {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "attachment %s: it was made by an older ambi, which this one cannot ask", a.Key), "call DEL and ADD again")
	}
	if err := Stopped(n.hub(a.Key), "attachment "+a.Key.String()); err != nil {
		return err
	}
	if state := n.hub(a.Key).State(); state != nil && state.Private != nil {
		return n.checkPrivate(a, state)
	}
	return n.checkShared(ctx, a)
}

// StateDirs are the state folders of this user's supervisors of a network that run, as far as they can be
// seen and trusted.
func StateDirs(network string) (dirs []string) {
	for _, s := range supervisor.Processes() {
		if s.Network() == network && !slices.Contains(dirs, s.StateDir()) && s.Trusted() {
			dirs = append(dirs, s.StateDir())
		}
	}
	return dirs
}

// Alive says whether the supervisor of the record runs, or is being started again by its keeper.
// That we cannot look is no proof that it does not.
func Alive(store *record.Store, r *record.Record) bool {
	if r.Hub == "" {
		return r.Supervisor.Alive() // of an older ambi
	}
	if r.Supervisor == nil {
		return false
	}
	state, err := hub.Hub{Store: store, Name: r.Hub}.Running()
	// Another hub of that name may have taken the place of the record's. Not for the same process
	// is looked, as older ones of ambi have written down the one that was there at ADD.
	return err != nil || state != nil && r.Supervisor.StartTime >= state.Supervisor.StartTime
}

// Del takes the container out of its hub, and returns when its ports are free and, with the
// last member, the driver is gone. What is gone already is success.
func (n *Network) Del(ctx context.Context, a *conf.Attachment) error {
	h := n.hub(a.Key)
	if n.Record != nil && n.Record.Hub != "" || h.There() {
		return n.leave(ctx, h, a)
	}
	if n.Record == nil {
		if err := n.delUnrecorded(ctx, a); err != nil {
			return err
		}
	}
	return n.endLost(ctx, a)
}

// endLost ends a supervisor that has no hub's folder any more, or never had one, being an
// older ambi's.
func (n *Network) endLost(ctx context.Context, a *conf.Attachment) error {
	find := func() *record.Process { return n.Record.Supervisor }
	if n.Record == nil {
		f, netns, err := record.OpenNetns(a.NetnsPath)
		if err != nil {
			return nil
		}
		f.Close()
		find = func() *record.Process { return supervisor.Find(a.Key, netns) }
	}
	// A supervisor that had to be killed is started again by its keeper. Others may call themselves as
	// it does, and go on doing so.
	const most = 16
	for p, tries := find(), 0; p != nil && tries < most && ctx.Err() == nil; p, tries = find(), tries+1 {
		if err := p.Stop(ctx); err != nil {
			return fmt.Errorf("stopping the supervisor of %s: %w", a.Key, err)
		}
		if n.Record != nil {
			break // the older ones have none
		}
	}
	n.step("stop the supervisor")
	if err := record.AwaitEnd(ctx, n.Store.Path(a.Key, "alive")); err != nil {
		return fmt.Errorf("attachment %s: %w", a.Key, err)
	}
	return nil
}
