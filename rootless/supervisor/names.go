package supervisor

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/ambi-cni/ambi/names"
)

// nameServer is a hub's, from the first member on whose network has names.
type nameServer struct {
	mu     sync.Mutex
	at     []netip.Addr
	server *names.Server // nil: none
}

// serveNames has the name server at these addresses. It asks others from where this
// process is, the host.
func (h *hub) serveNames(r request) error {
	n := &h.names
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server != nil && slices.Equal(n.at, r.Servers) {
		return nil
	}
	n.close()
	files, err := names.Listen(r.Servers, h.config.Bridge, h.inside.Socket)
	if err != nil {
		return err
	}
	n.at, n.server = r.Servers, names.New(h.members.hub.Store, h.config.Name, names.ResolvConf)
	return n.server.Serve(files)
}

func (n *nameServer) close() {
	if n.server != nil {
		n.server.Close()
		n.server = nil
	}
}
