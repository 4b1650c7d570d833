package names

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// ResolvConf names the host's name servers (resolv.conf(5)).
const ResolvConf = "/etc/resolv.conf"

// hostServers are the name servers of the host, read again whenever the file has changed:
// it was written, replaced, or a link on the way to it leads elsewhere.
type hostServers struct {
	path string

	mu      sync.Mutex
	mark    record.Mark
	servers []netip.Addr
}

// now are the servers at this moment; none where there is no file, or none in it. The
// host may get its network later.
func (h *hostServers) now() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	mark, err := record.MarkOf(h.path)
	if err != nil {
		h.mark, h.servers = record.Mark{}, nil
		return nil
	}
	if mark.Same(h.mark) {
		return h.servers
	}
	text, err := readStart(h.path)
	if err != nil {
		return h.servers
	}
	h.mark, h.servers = mark, nameServers(text)
	return h.servers
}

// readStart reads a file as far as it is of a reasonable length.
func readStart(path string) ([]byte, error) {
	const longest = 64 << 10                                    // bytes
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a pipe
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, longest))
}

// maxNameServers is how many name servers of a file are taken. The C library takes 3.
const maxNameServers = 5

// nameServers reads the name servers of a resolv.conf(5).
func nameServers(text []byte) (servers []netip.Addr) {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) < 2 || string(fields[0]) != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(string(fields[1]))
		if err == nil && a.Is4In6() {
			a = a.Unmap()
		}
		if a.IsUnspecified() && a.Is4() {
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // as the C library has it
		}
		if err == nil && !slices.Contains(servers, a) && len(servers) < maxNameServers {
			servers = append(servers, a)
		}
	}
	return servers
}
