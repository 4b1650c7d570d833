package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
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

	outside bool // an ADD that has not come into its hub
}

func (n *Network) controlOf(key conf.Key) supervisor.Control {
	if n.Record != nil && n.Record.Hub != "" {
		return controlOfHub(hub.Hub{Store: n.Store, Name: n.Record.Hub})
	}
	return supervisor.Control(n.Store.Path(key, "sock"))
}

// LogFile is the log of an attachment's supervisor.
func (n *Network) LogFile(key conf.Key) string {
	if n.Record != nil && n.Record.Hub != "" {
		return hub.Hub{Store: n.Store, Name: n.Record.Hub}.Path("log")
	}
	return n.Store.Path(key, "log")
}

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

// Add binds the host ports, starts the supervisor and returns when the network is
// up. It saves the record before its first change, and notes the supervisor in
// it. After an error, Del cleans up.
func (n *Network) Add(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	if a.NetConf.Rootless.Network == conf.NetworkShared {
		return n.addShared(ctx, a)
	}
	command, p, err := n.choose(a)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(a.NetnsPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	n.step("open the namespace")
	config := &supervisor.Config{
		Container: supervisor.Container{
			Key: a.Key, StateDir: n.Store.Dir(), Netns: ns.Netns, Plan: *p, SourceIP: a.NetConf.Rootless.SourceIP,
		},
		Driver: *command, LogLevel: a.NetConf.LogLevel,
	}
	message, err := n.launch(ctx, a, config, ns)
	if err != nil {
		return nil, err
	}
	return result(a, message.Plan), nil
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
	if r.Network != conf.NetworkShared && d.Name() == "relay" {
		return nil, nil, conf.Mendf(conf.Unsupported("rootless.driver", r.Driver, "the driver relay is for shared networks so far"), "set rootless.network to shared")
	}
	if err := unsupported(a, a.Ports...); err != nil {
		return nil, nil, err
	}
	p, err := program.Plan(a)
	if err != nil {
		return nil, nil, err
	}
	if d.Publishes(r.PortHandler) {
		command.APISocket = n.Store.Path(a.Key, "api") // without ports, too: some may be added
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
		return conf.Mendf(conf.Unsupported("runtimeConfig.bandwidth", a.NetConf.RuntimeConfig.Raw["bandwidth"], "without root the bandwidth of a container cannot be limited"), "run as root, or take the capability bandwidth away")
	}
	return nil
}

// launch hands everything to a new supervisor.
func (n *Network) launch(ctx context.Context, a *conf.Attachment, config *supervisor.Config, ns *namespace) (*supervisor.Ready, error) {
	sockets, err := forward.Listen(a.Ports)
	if err != nil {
		return nil, err
	}
	defer func() { forward.CloseSockets(sockets) }()
	if config.Driver.APISocket != "" {
		// The driver binds them itself and cannot say why it fails; now we know that it
		// can.
		forward.CloseSockets(sockets)
		sockets = nil
		config.Container.Ports = a.Ports
	}
	for _, s := range sockets {
		config.Container.Sockets = append(config.Container.Sockets, supervisor.Socket{Mapping: s.Mapping, Family: s.Family})
	}
	n.step("bind the ports")
	// Up to here nothing has to be undone.
	if err := n.Store.Save(n.Record); err != nil {
		return nil, err
	}
	n.step("save the record")
	l, err := n.newLauncher(a.Key, config, ns, sockets)
	if err != nil {
		return nil, err
	}
	defer l.close()
	process, message, err := l.start(ctx)
	if err != nil {
		return nil, err
	}
	n.step("start the supervisor")
	n.Record.Supervisor = &process
	return message, nil
}

func (n *Network) newLauncher(key conf.Key, config *supervisor.Config, ns *namespace, sockets []forward.Socket) (*launcher, error) {
	l := &launcher{config: config, namespace: ns, sockets: sockets}
	return l, l.open(n.Store.Path(key, "alive"), n.controlOf(key), n.Store.Path(key, "log"))
}

// open makes the files that a supervisor holds. After an error none is open.
func (l *launcher) open(alive string, control supervisor.Control, log string) (err error) {
	if l.alive, err = supervisor.LockAlive(alive); err != nil {
		return err
	}
	if l.control, err = control.Listen(); err != nil {
		l.close()
		return err
	}
	if l.log, err = os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_RDWR|unix.O_NOFOLLOW, 0o600); err != nil {
		l.close()
		return fmt.Errorf("supervisor's log: %w", err)
	}
	return nil
}

func (l *launcher) close() {
	for _, f := range []*os.File{l.alive, l.control, l.log} {
		if f != nil {
			f.Close()
		}
	}
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

// Check asks the supervisor, which looks at the driver, at its ports and into the
// namespace.
func (n *Network) Check(ctx context.Context, a *conf.Attachment) error {
	if n.Record == nil || !n.Record.Supervisor.Alive() {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "attachment %s: its supervisor is not running, so the container has no network", a.Key), "call DEL and ADD again")
	}
	if err := stopped("attachment "+a.Key.String(), n.Record.Supervisor); err != nil {
		return err
	}
	if n.Record.Hub != "" {
		return n.checkShared(ctx, a)
	}
	mac, err := recordedMAC(a)
	if err != nil {
		return err
	}
	err = n.controlOf(a.Key).Check(mac)
	var e *types.Error
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "attachment %s: its supervisor (process %d) is there and does not answer in time", a.Key, n.Record.Supervisor.PID), "try again, and if it stays so call DEL and ADD")
	}
	if err != nil && !errors.As(err, &e) {
		return conf.Errorf(conf.ErrNetwork, "attachment %s: its supervisor (process %d) does not answer: %v", a.Key, n.Record.Supervisor.PID, err)
	}
	return err
}

// Alive says whether the supervisor of the record runs.
func Alive(r *record.Record) bool { return r.Supervisor.Alive() }

// Del stops the supervisor and returns when its ports are free and its driver is
// gone. What is gone already is success.
func (n *Network) Del(ctx context.Context, a *conf.Attachment) error {
	if n.Record != nil && n.Record.Hub != "" {
		return n.delShared(ctx, hub.Hub{Store: n.Store, Name: n.Record.Hub}, a)
	}
	if n.Record == nil {
		if err := n.delUnrecorded(ctx, a); err != nil {
			return err
		}
	}
	p, err := n.findSupervisor(a)
	started := p != nil || err != nil
	if p != nil {
		if err := p.Stop(ctx); err != nil {
			return fmt.Errorf("stopping the supervisor of %s: %w", a.Key, err)
		}
	}
	n.step("stop the supervisor")
	if err := record.AwaitEnd(ctx, n.Store.Path(a.Key, "alive")); err != nil {
		return fmt.Errorf("attachment %s: %w", a.Key, err)
	}
	n.step("wait for the driver")
	if started && !supervisor.SaidClean(n.Store.Path(a.Key, "alive")) {
		return n.cleanInside(ctx, a)
	}
	return nil
}

var errKilled = errors.New("the supervisor ended without cleaning up")

// findSupervisor finds the process by the record, else by its control socket, else
// by its namespace. No process is errKilled when one was there, and no error when
// there never was.
func (n *Network) findSupervisor(a *conf.Attachment) (*record.Process, error) {
	key := a.Key
	if n.Record != nil && n.Record.Supervisor != nil && n.Record.Supervisor.There() {
		return n.Record.Supervisor, nil
	}
	if p, err := n.controlOf(key).Process(); err == nil {
		return p, nil
	}
	if _, err := os.Lstat(n.Store.Path(key, "alive")); errors.Is(err, fs.ErrNotExist) {
		return supervisor.FindByNamespace(key, a.NetnsPath), nil
	}
	return nil, errKilled
}

// cleanInside removes the routing rules that a killed supervisor left in the
// container's namespace, if that is still there.
func (n *Network) cleanInside(ctx context.Context, a *conf.Attachment) error {
	path, expected := a.NetnsPath, record.Netns{}
	if n.Record != nil {
		path, expected = n.Record.Netns.Path, n.Record.Netns
	}
	if path == "" {
		return nil
	}
	ns, err := openNamespace(path)
	if err != nil {
		return nil // gone, or no namespace: the rules went with it
	}
	defer ns.Close()
	if n.Record != nil && !ns.Same(expected) {
		return nil
	}
	config := &supervisor.Config{Container: supervisor.Container{Key: a.Key, Netns: expected}, CleanOnly: true}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l := &launcher{config: config, namespace: ns, alive: null, control: null, log: null}
	defer null.Close()
	if _, _, err := l.start(ctx); err != nil {
		return fmt.Errorf("cleaning the container's namespace after a killed supervisor: %w", err)
	}
	return nil
}
