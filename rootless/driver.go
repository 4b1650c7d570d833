package rootless

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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// driver is the slirp4netns binary of this host and the options it knows.
type driver struct {
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

// usualFolders are looked into after PATH, which runtimes often leave empty.
var usualFolders = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin"}

const installHint = "install the package slirp4netns (apt-get install slirp4netns, dnf install slirp4netns) or set the key rootless.path"

// findDriver finds slirp4netns and learns its options, from the cache in
// cacheDir when the binary is the one it was written for.
func findDriver(configured, cacheDir string) (*driver, error) {
	path, err := lookUp(configured)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns at %s: %v; %s", path, err, installHint)
	}
	d := &driver{Path: path, Size: st.Size(), MTime: st.ModTime().UnixNano()}
	if d.readCache(cacheDir) {
		return d, nil
	}
	if err := d.probe(); err != nil {
		return nil, err
	}
	d.writeCache(cacheDir)
	return d, nil
}

func lookUp(configured string) (string, error) {
	if configured != "" {
		if err := unix.Access(configured, unix.X_OK); err != nil {
			return "", conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns at %s (key rootless.path): %v; %s", configured, err, installHint)
		}
		return configured, nil
	}
	if path, err := exec.LookPath("slirp4netns"); err == nil && filepath.IsAbs(path) {
		return path, nil
	}
	for _, folder := range usualFolders {
		path := filepath.Join(folder, "slirp4netns")
		if unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns is not installed: it is not in PATH nor in %s; %s",
		strings.Join(usualFolders, ", "), installHint)
}

func (d *driver) cacheFile(dir string) string {
	sum := sha256.Sum256([]byte(d.Path))
	return filepath.Join(dir, "driver-"+hex.EncodeToString(sum[:8])+".cache")
}

// readCache is best effort: whatever is wrong with the cache, the binary is asked.
func (d *driver) readCache(dir string) bool {
	b, err := os.ReadFile(d.cacheFile(dir))
	if err != nil {
		return false
	}
	var cached driver
	if json.Unmarshal(b, &cached) != nil || cached.Path != d.Path || cached.Size != d.Size || cached.MTime != d.MTime || cached.Features == nil {
		return false
	}
	d.Features = cached.Features
	return true
}

// writeCache writes the file in place: half of it is no JSON and counts as none,
// and a writer that is killed leaves no other file.
func (d *driver) writeCache(dir string) {
	b, err := json.Marshal(d)
	if err == nil {
		_ = os.WriteFile(d.cacheFile(dir), b, 0o600)
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

func (d *driver) probe() error {
	out, err := askProgram(d.Path, "--help")
	if err != nil {
		return conf.Errorf(conf.ErrPluginNotAvailable, "asking %s for its options (--help): %v: %s; %s", d.Path, err, lastLines(out, 3), installHint)
	}
	d.Features = parseHelp(out)
	if !d.Features["netns-type"] || !d.Features["ready-fd"] || !d.Features["exit-fd"] {
		return conf.Errorf(conf.ErrPluginNotAvailable, "%s is too old: it lacks --netns-type, --ready-fd or --exit-fd; version 0.4.0 or newer is needed", d.Path)
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

// arguments are the options for slirp4netns, without file descriptors and target.
// r loses what was on by default and the binary does not have; what was asked
// for and is missing is an error of code 2.
func (d *driver) arguments(r *conf.Rootless) ([]string, error) {
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
		if w.on && !d.Features[w.feature] {
			return nil, conf.Unsupported(w.key, w.value, fmt.Sprintf("%s has no option --%s; install a newer slirp4netns", d.Path, w.feature))
		}
	}
	if err := resolveOutbound(r); err != nil {
		return nil, err
	}
	r.EnableIPv6 = r.EnableIPv6 && d.Features["enable-ipv6"]
	return d.flags(r), nil
}

func (d *driver) flags(r *conf.Rootless) []string {
	args := []string{"--netns-type=path"}
	add := func(on bool, feature, value string) {
		if !on || !d.Features[feature] {
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
	add(r.OutboundAddr6 != "", "outbound-addr6", r.OutboundAddr6)
	add(r.DisableDNS, "disable-dns", "")
	add(r.Sandbox, "enable-sandbox", "")
	add(r.Seccomp, "enable-seccomp", "")
	return args
}

// resolveOutbound looks for an interface that is named where an address may
// stand. For IPv6 its address takes its place: slirp4netns 1.2.0 says that it takes
// a name, and does not look for it.
func resolveOutbound(r *conf.Rootless) error {
	if _, err := outboundAddress("rootless.outboundAddr", r.OutboundAddr, netip.Addr.Is4); err != nil {
		return err
	}
	address, err := outboundAddress("rootless.outboundAddr6", r.OutboundAddr6, netip.Addr.Is6)
	r.OutboundAddr6 = address
	return err
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

// checkTun opens /dev/net/tun as the driver will: its own message for that is one
// line of strerror.
func checkTun() error {
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
	return conf.Errorf(conf.ErrPluginNotAvailable, "slirp4netns needs %s: %v; %s", path, err, hint)
}

// lastLines is the end of a program's output in one line.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, " | ")
}
