package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// slirp4netns(1) puts a TCP/IP stack in user space behind a tap device.
type slirp4netns struct{}

func (slirp4netns) Name() string    { return "slirp4netns" }
func (slirp4netns) Package() string { return "slirp4netns" }

// program is the slirp4netns binary of this host and the options it knows.
type program struct {
	Path     string          `json:"path"`
	Size     int64           `json:"size"`
	MTime    int64           `json:"mtime"` // nanoseconds
	Features map[string]bool `json:"features"`
}

// features are the options that came to slirp4netns over time, as its --help
// shows them (slirp4netns(1)).
var features = []string{
	"disable-host-loopback", "mtu", "enable-sandbox", "enable-seccomp", "cidr", "outbound-addr", "outbound-addr6",
	"enable-ipv6", "disable-dns", "macaddress", "netns-type", "userns-path", "api-socket", "ready-fd", "exit-fd",
}

const installHint = "install the package slirp4netns (apt-get install slirp4netns, dnf install slirp4netns) or set the key rootless.path"

func (slirp4netns) Find(configured, cacheDir string) (Program, error) {
	path, err := lookUp(configured)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns at %s: %v", path, err), "%s", installHint)
	}
	p := &program{Path: path, Size: st.Size(), MTime: st.ModTime().UnixNano()}
	if p.readCache(cacheDir) {
		return p, nil
	}
	if err := p.probe(); err != nil {
		return nil, err
	}
	p.writeCache(cacheDir)
	return p, nil
}

func lookUp(configured string) (string, error) {
	if configured != "" {
		if err := unix.Access(configured, unix.X_OK); err != nil {
			return "", conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns at %s (key rootless.path): %v", configured, err), "%s", installHint)
		}
		return configured, nil
	}
	if path := LookUp("slirp4netns"); path != "" {
		return path, nil
	}
	return "", conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns is not installed: it is not in PATH nor in %s", strings.Join(usualFolders, ", ")), "%s", installHint)
}

func (p *program) cacheFile(dir string) string {
	sum := sha256.Sum256([]byte(p.Path))
	return filepath.Join(dir, "driver-"+hex.EncodeToString(sum[:8])+".cache")
}

// readCache is best effort: whatever is wrong with the cache, the binary is asked.
func (p *program) readCache(dir string) bool {
	b, err := os.ReadFile(p.cacheFile(dir))
	if err != nil {
		return false
	}
	var cached program
	if json.Unmarshal(b, &cached) != nil || cached.Path != p.Path || cached.Size != p.Size || cached.MTime != p.MTime || cached.Features == nil {
		return false
	}
	p.Features = cached.Features
	return true
}

// writeCache writes the file in place: half of it is no JSON and counts as none,
// and a writer that is killed leaves no other file.
func (p *program) writeCache(dir string) {
	b, err := json.Marshal(p)
	if err == nil {
		_ = os.WriteFile(p.cacheFile(dir), b, 0o600)
	}
}

// The bounds of a program that is not slirp4netns, and waits for something or says
// without end.
const (
	probePatience = 10 * time.Second
	probeLimit    = 64 << 10
)

// askProgram runs a program with an option that it answers by text. With an error the
// text is what it said before.
func askProgram(path, option string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, option)
	cmd.WaitDelay = time.Second // for output that a child of it holds open
	var said limitedText
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if said.full {
		err = fmt.Errorf("it says more than %d bytes", probeLimit)
	}
	return said.String(), err
}

// limitedText takes so much; then whoever writes gets no further.
type limitedText struct {
	strings.Builder
	full bool
}

func (l *limitedText) Write(b []byte) (int, error) {
	if l.full = l.full || l.Len()+len(b) > probeLimit; l.full {
		return 0, io.ErrShortWrite
	}
	return l.Builder.Write(b)
}

func (p *program) probe() error {
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
	if _, err := outboundAddress("rootless.outboundAddr", r.OutboundAddr, netip.Addr.Is4); err != nil {
		return nil, err
	}
	// An interface may be named where an address may stand. For IPv6 its address takes its
	// place: slirp4netns 1.2.0 says that it takes a name, and does not look for it.
	outbound6, err := outboundAddress("rootless.outboundAddr6", r.OutboundAddr6, netip.Addr.Is6)
	if err != nil {
		return nil, err
	}
	return &Command{Driver: slirp4netns{}.Name(), Path: p.Path, Args: p.arguments(r, outbound6), IfName: ifName}, nil
}

// arguments are the options for slirp4netns, without file descriptors and target.
func (p *program) arguments(r conf.Rootless, outbound6 string) []string {
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
	add(r.OutboundAddr != "", "outbound-addr", r.OutboundAddr)
	add(outbound6 != "", "outbound-addr6", outbound6)
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

// outboundAddress is the value itself when it is an address, or empty, and else
// that of the interface.
func outboundAddress(key, value string, family func(netip.Addr) bool) (string, error) {
	if _, err := netip.ParseAddr(value); err == nil || value == "" {
		return value, nil
	}
	link, err := net.InterfaceByName(value)
	if err != nil {
		return "", conf.Invalid(key, value, "it is neither an address of the right family nor an interface of this host")
	}
	addresses, err := link.Addrs()
	if err != nil {
		return "", fmt.Errorf("addresses of interface %s: %w", value, err)
	}
	for _, address := range addresses {
		if p, err := netip.ParsePrefix(address.String()); err == nil && family(p.Addr()) && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr().String(), nil
		}
	}
	return "", conf.Invalid(key, value, "that interface has no address of the right family")
}

// CheckHost opens /dev/net/tun as slirp4netns will, whose own message for that is one
// line of strerror.
func (s slirp4netns) CheckHost() error { return checkTun(s.Name()) }

// checkTun opens /dev/net/tun as the driver will.
func checkTun(name string) error {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return nil
	}
	hint := "load the module (modprobe tun) or make the device node (mkdir -p /dev/net; mknod -m 0666 /dev/net/tun c 10 200)"
	if errors.Is(err, fs.ErrPermission) {
		hint = "let users open it (chmod 0666 /dev/net/tun), as ordinary hosts do"
	}
	return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "%s needs %s: %v", name, path, err), "%s", hint)
}

func (slirp4netns) Inspect(configured string) (*Info, error) {
	path, err := lookUp(configured)
	if err != nil {
		return &Info{}, err
	}
	p := &program{Path: path}
	if err := p.probe(); err != nil {
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
