package relay

import (
	"net/netip"
	"os"
	"time"

	"github.com/ambi-cni/ambi/conf"
)

const domain = 53

// nameServer is where a question to the name server's address goes: the first name server
// of the host, which may be one on its loopback.
func (r *Relay) nameServer(to netip.AddrPort) (netip.AddrPort, class) {
	if to.Port() != domain {
		return to, noServer
	}
	server := r.resolver.first()
	if !server.IsValid() {
		return to, noServer
	}
	return netip.AddrPortFrom(server, domain), reached
}

// resolver is the host's configuration of name servers (resolv.conf(5)), read again when it
// has changed.
type resolver struct {
	path   string
	asked  time.Time
	seen   os.FileInfo
	server netip.Addr
}

// resolverPause is how long an answer is good without a look at the file.
const resolverPause = time.Second

// first is the first name server; invalid without one.
func (r *resolver) first() netip.Addr {
	if time.Since(r.asked) < resolverPause {
		return r.server
	}
	r.asked = time.Now()
	st, err := os.Stat(r.path)
	if err == nil && r.seen != nil && os.SameFile(st, r.seen) && st.ModTime().Equal(r.seen.ModTime()) && st.Size() == r.seen.Size() {
		return r.server
	}
	r.seen = st
	b, _ := os.ReadFile(r.path)
	r.server = netip.Addr{}
	if all := conf.NameServers(b); len(all) > 0 {
		r.server = all[0]
	}
	return r.server
}
