package nat

import (
	"context"
	"errors"
	"net/netip"

	"github.com/ambi-cni/ambi/conf"
)

// Published is what one attachment publishes.
type Published struct {
	Owner conf.Key
	IPs   []netip.Addr // the container's addresses; the first of each family is the target
	Ports []conf.PortMapping
	SNAT  bool
	// Reserved are the inodes of sockets that are known to be the container's engine's:
	// they hold its ports for it and are no obstacle.
	Reserved []uint32
}

// Backend publishes host ports in the network namespace of the calling thread.
// Its methods may be called concurrently, from several processes too. Errors
// that a person can act on are *types.Error of the CNI library.
type Backend interface {
	// Name is the backend's name in the configuration.
	Name() string
	// Free says whether Add of p could publish its ports now, and changes nothing. Of
	// the addresses only the families matter, so that it can be asked before the
	// container has any: 0.0.0.0 and :: will do. Another may take a port between Free
	// and Add, so Add asks for itself. It returns the sockets that hold the ports for
	// the container, as p.Reserved has them.
	Free(ctx context.Context, p Published) (reserved []uint32, err error)
	// Add publishes all ports of p or none. A port that is taken is an error of
	// code [conf.ErrPortInUse] naming its owner; an owner that already has
	// published ports is one too. What another attachment of the same container
	// publishes is left to that. Without ports it does nothing.
	Add(ctx context.Context, p Published) error
	// Check compares the kernel with p, changes nothing, and names what is missing.
	Check(ctx context.Context, p Published) error
	// Del removes what p.Owner has; the rest of p may be missing or wrong. Nothing
	// there is success. What another attachment of the container left to it takes a
	// Restore of that one.
	Del(ctx context.Context, p Published) error
	// Unpublish is Del in two parts, since as long as the container has its interface it
	// answers what came before: to a client whose conversation is forgotten that would be a
	// new one, which sends what comes to the port later to the container's address.
	Unpublish(ctx context.Context, p Published) (forget func() error, err error)
	// Restore puts back what is missing of all, in one transaction, and returns the
	// owners of what it put back. What is there already stays untouched.
	Restore(ctx context.Context, all []Published) (restored []conf.Key, err error)
	// Owners lists the attachments of a network that have published ports in the
	// kernel; of every network when the name is empty.
	Owners(ctx context.Context, network string) ([]conf.Key, error)
}

// Open picks the backend. Auto is nftables, or iptables on a kernel without it when its
// programs are installed. The error says what to install.
func Open(backend conf.Backend) (Backend, error) {
	switch backend {
	case conf.BackendNFTables:
		return openNFTables()
	case conf.BackendIPTables:
		return openIPTables()
	case conf.BackendAuto, "":
		return openAny()
	}
	return nil, conf.Unsupported("portmap.backend", backend, "allowed here are auto, nftables, iptables")
}

func openAny() (Backend, error) {
	nftErr := askNFTables()
	switch {
	case nftErr == nil:
		return backend{nftRules{}}, nil
	case !notThere(nftErr):
		// Not a kernel without it, but a moment: with the ports of one container here
		// and those of the next in iptables, neither would see the other's.
		return nil, noAnswer(nftErr)
	}
	ipt, iptErr := openIPTables()
	if iptErr == nil {
		return ipt, nil
	}
	return nil, conf.Errorf(conf.ErrNetwork, "publishing host ports: %v", errors.Join(noAnswer(nftErr), iptErr))
}
