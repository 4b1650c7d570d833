package supervisor

import (
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/ambi-cni/ambi/names"
)

// nameServer is a hub's, from the first member on whose network has names.
type nameServer struct {
	mu     sync.Mutex
	at     []netip.Addr
	server *names.Server // nil: none
	copies []*os.File    // of its sockets, for keepers to come
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
	_ = h.twin.drop(keyNames, func() error { n.close(); return nil })
	files, err := names.Listen(r.Servers, h.config.Bridge, h.inside.Socket)
	if err != nil {
		return err
	}
	return h.serveNamesOn(r.Servers, files)
}

// serveNamesOn is called with the lock held. It owns the files. After an error there is no
// server, so that who asks for one again gets one, and nothing for a keeper to hold.
func (h *hub) serveNamesOn(at []netip.Addr, files []*os.File) error {
	n := &h.names
	if err := h.entrustNames(at, files); err != nil {
		closeAll(files)
		return err
	}
	n.at, n.server = at, names.New(h.members.hub.Store, h.config.Name, names.ResolvConf)
	err := n.server.Serve(files)
	if err != nil {
		closeAll(files)
		_ = h.twin.drop(keyNames, func() error { n.close(); return nil })
	}
	return err
}

func (n *nameServer) close() {
	if n.server != nil {
		n.server.Close()
		n.server = nil
	}
	closeAll(n.copies)
	n.copies = nil
}
