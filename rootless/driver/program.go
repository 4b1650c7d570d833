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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// This file is what drivers that are programs of the host have in common.

// binary is a file that was looked at, and what it can do.
type binary struct {
	Path     string          `json:"path"`
	Size     int64           `json:"size"`
	MTime    int64           `json:"mtime"` // nanoseconds
	Features map[string]bool `json:"features"`
	Version  string          `json:"version,omitempty"`
}

// installable is a driver that is a program, with what to do where it is missing.
type installable interface {
	Name() string
	hint() string
}

// find looks for the program and has probe fill in what it can do, unless the cache knows.
func find(d installable, configured, cacheDir string, probe func(*binary) error) (*binary, error) {
	path, err := lookUp(d, configured)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "%s at %s: %v", d.Name(), path, err), "%s", d.hint())
	}
	b := &binary{Path: path, Size: st.Size(), MTime: st.ModTime().UnixNano()}
	if b.readCache(d, cacheDir) {
		return b, nil
	}
	if err := probe(b); err != nil {
		return nil, err
	}
	b.writeCache(d, cacheDir)
	return b, nil
}

func lookUp(d installable, configured string) (string, error) {
	if configured != "" {
		if err := unix.Access(configured, unix.X_OK); err != nil {
			return "", conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "%s at %s (key rootless.path): %v", d.Name(), configured, err), "%s", d.hint())
		}
		return configured, nil
	}
	if path := LookUp(d.Name()); path != "" {
		return path, nil
	}
	return "", conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "%s is not installed: it is not in PATH nor in %s", d.Name(), strings.Join(usualFolders, ", ")), "%s", d.hint())
}

func (b *binary) cacheFile(d installable, dir string) string {
	sum := sha256.Sum256([]byte(d.Name() + b.Path))
	return filepath.Join(dir, "driver-"+hex.EncodeToString(sum[:8])+".cache")
}

// readCache is best effort: whatever is wrong with the cache, the binary is asked.
func (b *binary) readCache(d installable, dir string) bool {
	text, err := os.ReadFile(b.cacheFile(d, dir))
	if err != nil {
		return false
	}
	var cached binary
	if json.Unmarshal(text, &cached) != nil || cached.Path != b.Path || cached.Size != b.Size || cached.MTime != b.MTime || cached.Features == nil {
		return false
	}
	*b = cached
	return true
}

// writeCache writes the file in place: half of it is no JSON and counts as none,
// and a writer that is killed leaves no other file.
func (b *binary) writeCache(d installable, dir string) {
	text, err := json.Marshal(b)
	if err == nil {
		_ = os.WriteFile(b.cacheFile(d, dir), text, 0o600)
	}
}

// The bounds of a program that is not the driver, and waits for something or says
// without end.
const (
	probePatience = 10 * time.Second
	probeLimit    = 64 << 10
)

// askProgram runs a program with options that it answers by text. With an error the
// text is what it said before.
func askProgram(path string, options ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, options...)
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

// checkTun opens /dev/net/tun as the driver will, whose own message for that is one line
// of strerror.
func checkTun(name string) error {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		go unix.Close(fd) // which waits for whoever changes interfaces, of any namespace, at the moment
		return nil
	}
	hint := "load the module (modprobe tun) or make the device node (mkdir -p /dev/net; mknod -m 0666 /dev/net/tun c 10 200)"
	if errors.Is(err, fs.ErrPermission) {
		hint = "let users open it (chmod 0666 /dev/net/tun), as ordinary hosts do"
	}
	return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "%s needs %s: %v", name, path, err), "%s", hint)
}
