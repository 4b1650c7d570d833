package names

import (
	"io"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
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
	h.mark, h.servers = mark, conf.NameServers(text)
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
