package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ambi-cni/ambi/conf"
)

// slirp4netns(1) puts a TCP/IP stack in user space behind a tap device.
type slirp4netns struct{}

func (slirp4netns) Name() string    { return "slirp4netns" }
func (slirp4netns) Package() string { return "slirp4netns" }

// program is the slirp4netns binary of this host and the options it knows.
type program struct{ binary }

// features are the options that came to slirp4netns over time, as its --help
// shows them (slirp4netns(1)).
var features = []string{
	"disable-host-loopback", "mtu", "enable-sandbox", "enable-seccomp", "cidr", "outbound-addr", "outbound-addr6",
	"enable-ipv6", "disable-dns", "macaddress", "netns-type", "userns-path", "api-socket", "ready-fd", "exit-fd",
}

const installHint = "install the package slirp4netns (apt-get install slirp4netns, dnf install slirp4netns) or set the key rootless.path"

func (d slirp4netns) Find(configured, cacheDir string) (Program, error) {
	b, err := find(d, configured, cacheDir, probeSlirp)
	if err != nil {
		return nil, err
	}
	return &program{*b}, nil
}

func (slirp4netns) hint() string { return installHint }

func probeSlirp(p *binary) error {
	out, err := askProgram(p.Path, "--help")
	if err != nil {
		return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "asking %s for its options (--help): %v: %s", p.Path, err, LastLines(out, 3)), "%s", installHint)
	}
	p.Features = parseHelp(out)
	if !p.Features["netns-type"] || !p.Features["ready-fd"] || !p.Features["exit-fd"] {
		return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "%s is too old: it lacks --netns-type, --ready-fd or --exit-fd", p.Path), "version 0.4.0 or newer is needed")
	}
	return nil
}

// parseHelp says which of the options a help text names.
func parseHelp(text string) map[string]bool {
	known := make(map[string]bool, len(features))
	for _, f := range features {
		known[f] = strings.Contains(text, "--"+f+"=") || strings.Contains(text, "--"+f+" ") || strings.Contains(text, "--"+f+"\n")
	}
	return known
}

// wants is one option the configuration asks for.
type wants struct {
	feature string
	key     string
	value   any
	on      bool
}

// defaultCIDR is slirp4netns's own.
var defaultCIDR = netip.MustParsePrefix("10.0.2.0/24")

func (p *program) Command(r conf.Rootless, ifName string) (*Command, error) {
	for _, w := range []wants{
		{"cidr", "rootless.cidr", r.CIDR, r.CIDR != defaultCIDR},
		{"enable-ipv6", "rootless.enableIPv6", true, r.EnableIPv6 && r.EnableIPv6Set},
		{"enable-ipv6", "rootless.outboundAddr6", r.OutboundAddr6, r.OutboundAddr6 != ""},
		{"outbound-addr", "rootless.outboundAddr", r.OutboundAddr, r.OutboundAddr != ""},
		{"outbound-addr6", "rootless.outboundAddr6", r.OutboundAddr6, r.OutboundAddr6 != ""},
		{"disable-dns", "rootless.disableDNS", true, r.DisableDNS},
		{"mtu", "rootless.mtu", r.MTU, r.MTU != 1500},
		{"disable-host-loopback", "rootless.allowHostLoopback", false, !r.AllowHostLoopback},
		{"api-socket", "rootless.portHandler", r.PortHandler, r.PortHandler == conf.HandlerSlirp4netns},
	} {
		if w.on && !p.Features[w.feature] {
			return nil, conf.Mendf(conf.Unsupported(w.key, w.value, fmt.Sprintf("%s has no option --%s", p.Path, w.feature)), "install a newer slirp4netns")
		}
	}
	c := &Command{
		Driver: slirp4netns{}.Name(), Path: p.Path, Args: p.arguments(r), IfName: ifName,
		Outbound4: r.OutboundAddr, Outbound6: r.OutboundAddr6,
	}
	_, _, err := c.outbound()
	return c, err
}

// slirpOutbound are the options for the addresses to go out from. Where an interface is
// named its address takes its place: slirp4netns 1.2.0 says that it takes the name of one for
// IPv6, too, and does not look for it.
func slirpOutbound(c *Command) (options []string, err error) {
	v4, v6, err := c.outbound()
	if v4 != "" {
		options = append(options, "--outbound-addr="+v4)
	}
	if v6 != "" {
		options = append(options, "--outbound-addr6="+v6)
	}
	return options, err
}

func (slirp4netns) ofHost(*Command) string { return "" }

// arguments are the options for slirp4netns, without file descriptors and target.
func (p *program) arguments(r conf.Rootless) []string {
	args := []string{"--netns-type=path"}
	add := func(on bool, feature, value string) {
		if !on || !p.Features[feature] {
			return
		}
		if value != "" {
			feature += "=" + value
		}
		args = append(args, "--"+feature)
	}
	add(true, "mtu", strconv.Itoa(r.MTU))
	add(true, "cidr", r.CIDR.String())
	add(r.EnableIPv6, "enable-ipv6", "")
	add(!r.AllowHostLoopback, "disable-host-loopback", "")
	add(r.DisableDNS, "disable-dns", "")
	add(r.Sandbox, "enable-sandbox", "")
	add(r.Seccomp, "enable-seccomp", "")
	return args
}

func (slirp4netns) move(c *Command, network netip.Prefix) {
	for i, arg := range c.Args {
		if strings.HasPrefix(arg, "--cidr=") {
			c.Args[i] = "--cidr=" + network.String()
		}
	}
}

func (s slirp4netns) CheckHost() error { return checkTun(s.Name()) }

func (slirp4netns) Inspect(configured string) (*Info, error) {
	path, err := lookUp(slirp4netns{}, configured)
	if err != nil {
		return &Info{}, err
	}
	p := &binary{Path: path}
	if err := probeSlirp(p); err != nil {
		return &Info{Path: path}, err
	}
	info := &Info{Path: path}
	for _, f := range features {
		if !p.Features[f] && !slices.Contains(unused, f) {
			info.Lacks = append(info.Lacks, f)
		}
	}
	if out, err := askProgram(path, "--version"); err == nil {
		first, _, _ := strings.Cut(out, "\n")
		info.Version = strings.TrimSpace(strings.TrimPrefix(first, "slirp4netns version "))
	}
	return info, nil
}

// unused are features that are looked for and not used.
var unused = []string{"macaddress", "userns-path"}
