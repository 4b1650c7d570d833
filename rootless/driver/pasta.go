package driver

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// pasta(1) has no TCP/IP stack: it has the kernels on both sides do the work, and passes on
// what comes by the tap to sockets.
type pasta struct{}

func (pasta) Name() string    { return "pasta" }
func (pasta) Package() string { return "passt" }

func (pasta) hint() string {
	return "install the package passt (apt-get install passt, dnf install passt) or set the key rootless.path"
}

// pastaProgram is the pasta binary of this host.
type pastaProgram struct{ binary }

func (d pasta) Find(configured, cacheDir string) (Program, error) {
	b, err := find(d, configured, cacheDir, probePasta)
	if err != nil {
		return nil, err
	}
	return &pastaProgram{*b}, nil
}

// probePasta tries all options at a time: --version ends it when it comes to that one.
func probePasta(b *binary) error {
	b.Features = map[string]bool{}
	everything := &pastaProgram{*b}
	options := everything.arguments(conf.Rootless{CIDR: defaultCIDR, MTU: 1500, OutboundAddr: "192.0.2.1"})
	said, err := askProgram(b.Path, append(options, "--version")...)
	if err != nil {
		return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "asking %s for its options (%s --version): %v: %s", b.Path, strings.Join(options, " "), err, firstLine(said)),
			"version 2023-03 or newer is needed: %s", pasta{}.hint())
	}
	b.Version = pastaVersion(said)
	return nil
}

func firstLine(text string) string {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !isNoise(line) {
			return line
		}
	}
	return "it printed nothing"
}

// pastaVersion is what it says after its name: "0.0~git20230309.7c7625d-1" of Debian,
// "2025_09_19.623dbf6" of its makers, "unknown version" where whoever built it did not say.
func pastaVersion(said string) string {
	for line := range strings.Lines(said) {
		if version, ok := strings.CutPrefix(line, "pasta "); ok {
			return strings.TrimSpace(version)
		}
	}
	return ""
}

// Before this day pasta lost the end of downloads and stalled (its commits 149f457,
// 8d2f8c4, b3217aa and a947839).
const pastaMended = "20251002"

var pastaDate = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`20\d\d_?\d\d_?\d\d`) })

// warning is empty for a build without the known faults. One that does not say which it is
// counts as old: those of today do.
func (p *pastaProgram) warning() string {
	date := strings.ReplaceAll(pastaDate().FindString(p.Version), "_", "")
	if date >= pastaMended {
		return ""
	}
	which := "of " + p.Version
	if date == "" {
		which = "that does not say which it is (" + p.Version + ")"
	}
	return "a build " + which + ": those of before 2025-10 may cut the end of a download or let it stall"
}

const notByPasta = "with pasta ports are published by rootlessport"

func (p *pastaProgram) Command(r conf.Rootless, ifName string) (*Command, error) {
	for _, w := range []struct {
		key   string
		value any
		on    bool
		why   string
	}{
		{"rootless.portHandler", r.PortHandler, r.PortHandler != conf.HandlerRootlessport, notByPasta},
		{"rootless.sandbox", false, !r.Sandbox, "pasta has its sandbox always"},
		{"rootless.seccomp", false, !r.Seccomp, "pasta has its seccomp filter always"},
	} {
		if w.on {
			return nil, conf.Mendf(conf.Unsupported(w.key, w.value, w.why), "set rootless.driver to slirp4netns, or leave the key out")
		}
	}
	var err error
	if r.EnableIPv6, err = ipv6Usable(&r, true); err != nil {
		return nil, err
	}
	c := &Command{
		Driver: pasta{}.Name(), Path: p.Path, Args: p.arguments(r), IfName: ifName, Warning: p.warning(),
		Outbound4: r.OutboundAddr, Outbound6: r.OutboundAddr6,
	}
	_, _, err = c.outbound()
	return c, err
}

// arguments are the options for pasta, without the interface and what differs from start
// to start. Ports stay with rootlessport, and what is on the interface is set by us: so
// it is down until nothing can come by it that should not, see AwaitReady.
func (p *pastaProgram) arguments(r conf.Rootless) []string {
	const mac = "9a:55:9a:55:9a:55" // of its own side, as that of today has it
	args := []string{
		"--foreground", "--quiet", "--no-netns-quit", "--no-dhcp", "--no-dhcpv6", "--no-ra",
		"--tcp-ports=none", "--udp-ports=none", "--tcp-ns=none", "--udp-ns=none",
		"--mac-addr=" + mac, "--mtu=" + strconv.Itoa(r.MTU),
	}
	args = append(args, pastaAddresses(r.CIDR, !r.DisableDNS)...)
	if r.EnableIPv6 {
		args = append(args, pastaAddresses(ipv6Network, !r.DisableDNS)...)
	} else {
		args = append(args, "--ipv4-only")
	}
	if !r.AllowHostLoopback {
		args = append(args, "--no-map-gw")
	}
	return args
}

// pastaAddresses are its options for a network.
func pastaAddresses(network netip.Prefix, dns bool) []string {
	args := []string{"--address=" + hostNumber(network, guestNumber).String(), "--gateway=" + hostNumber(network, gatewayNumber).String()}
	if network.Addr().Is4() {
		args = append(args, "--netmask="+strconv.Itoa(network.Bits()))
	}
	if dns {
		args = append(args, "--dns-forward="+hostNumber(network, dnsNumber).String())
	}
	return args
}

func (pasta) move(c *Command, network netip.Prefix) {
	moved := pastaAddresses(network, true)
	for i, arg := range c.Args {
		name, value, _ := strings.Cut(arg, "=")
		if ip, err := netip.ParseAddr(value); err == nil && ip.Is6() {
			continue
		}
		if at := slices.IndexFunc(moved, func(m string) bool { return strings.HasPrefix(m, name+"=") }); at >= 0 {
			c.Args[i] = moved[at]
		}
	}
}

func (p *pastaProgram) Plan(a *conf.Attachment) (*plan.Interface, error) {
	return planFor(a, pasta{}.Name(), true, true)
}

func (pasta) CheckHost() error                { return checkTun("pasta") }
func (pasta) Publishes(conf.PortHandler) bool { return false }

func (pasta) Publishable(m conf.PortMapping) (conf.PortMapping, error) {
	return m, conf.Unsupported("rootless.portHandler", conf.HandlerSlirp4netns, notByPasta)
}

func (pasta) publisher(*Command, netip.Addr) Publisher { return nil }

func (d pasta) Inspect(configured string) (*Info, error) {
	path, err := lookUp(d, configured)
	if err != nil {
		return &Info{}, err
	}
	p := &pastaProgram{binary{Path: path}}
	if err := probePasta(&p.binary); err != nil {
		return &Info{Path: path}, err
	}
	return &Info{Path: path, Version: p.Version, Warning: p.warning()}, nil
}

// pastaOptionsOfHost are those that follow the host.
func pastaOptionsOfHost(c *Command) ([]string, error) {
	v4, v6, err := c.outbound()
	if err != nil {
		return nil, err
	}
	options := []string{"--interface=" + templateInterface()}
	for _, address := range []string{v4, v6} {
		if address != "" {
			options = append(options, "--outbound="+address)
		}
	}
	return options, nil
}

// templateInterface is where pasta takes addresses from that it is not given. It has all
// that it uses from us, so that lo will do, whatever the host has or has not; but for
// IPv6, for which builds of before 2024-11 ask for an interface with a link-local address.
func templateInterface() string {
	links, _ := net.Interfaces()
	for _, link := range links {
		addresses, _ := link.Addrs()
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && link.Flags&net.FlagUp != 0 && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
				return link.Name
			}
		}
	}
	return "lo"
}

// ofHost is what a pasta that is started now would have of the host for good: it reads
// resolv.conf once.
func (pasta) ofHost(c *Command) (state string) {
	if slices.ContainsFunc(c.Args, func(arg string) bool { return strings.HasPrefix(arg, "--dns-forward=") }) {
		servers, _ := os.ReadFile(resolvConf)
		state = string(servers)
	}
	if c.Warning != "" && templateInterface() == "lo" {
		state += " without IPv6"
	}
	return state
}

// pastaProcess is one running pasta.
type pastaProcess struct {
	child
	ready *os.File // its PID, when the interface is there (--pid)
}

// The files of pasta's own are 0 to 2, since it closes all others when it starts (that of
// 2024-08 and newer): the namespace, the pipe for its PID, and what it says.
const (
	pastaNetns = "/proc/self/fd/0"
	pastaReady = "/proc/self/fd/1"
)

func (pasta) start(c *Command, files Files, log *slog.Logger) (Process, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting pasta: %w", err)
	}
	defer write.Close()
	options, err := pastaOptionsOfHost(c)
	if err != nil {
		read.Close()
		return nil, err
	}
	if c.Warning != "" {
		log.Warn("pasta", "path", c.Path, "is", c.Warning)
	}
	argv := slices.Concat([]string{c.Path}, c.Args, options, []string{"--ns-ifname=" + c.IfName, "--netns=" + pastaNetns, "--pid=" + pastaReady})
	p := &pastaProcess{child: newChild("pasta", files, log, c.Path), ready: read}
	p.hides = c.Hides()
	p.cmd.Stdin, p.cmd.Stdout = files.Netns, write
	if err := p.startUnderUs(argv); err != nil {
		read.Close()
		return nil, fmt.Errorf("starting pasta: %w", err)
	}
	return p, nil
}

// adopt: it ends with who has started it, since it has no other way to know that nobody needs it.
func (pasta) adopt(*Command, Survivor, Files, *slog.Logger) (Process, error) {
	return nil, errNoDriver
}

func (p *pastaProcess) Survivor() *Survivor { return nil }

func (p *pastaProcess) AwaitReady() error {
	defer p.ready.Close()
	if err := p.ready.SetReadDeadline(time.Now().Add(readyPatience)); err != nil {
		return fmt.Errorf("waiting for pasta: %w", err)
	}
	if _, err := io.ReadFull(p.ready, make([]byte, 1)); errors.Is(err, io.EOF) {
		return explainPasta(p.notReady(), exists)
	} else if err != nil {
		return fmt.Errorf("waiting for pasta to become ready: %w: %s", err, p.tail.last())
	}
	// The interface is down, and nothing has come by it.
	return p.closeLoopback()
}

// explainPasta names the one who refuses: pasta itself only has the kernel's word.
func explainPasta(err error, exists func(string) bool) error {
	said := err.Error()
	denied := strings.Contains(said, "Permission denied") || strings.Contains(said, "Operation not permitted")
	if !denied || !exists("/sys/module/apparmor") {
		return err
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%v", err),
		"AppArmor may forbid it: install the profile of its package (/etc/apparmor.d/usr.bin.pasta) and load it (apparmor_parser -r), or set rootless.driver to another one")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *pastaProcess) Dismiss() { _ = p.cmd.Process.Signal(unix.SIGTERM) }

func (p *pastaProcess) Stop() {
	p.Dismiss()
	p.awaitEnd()
}
