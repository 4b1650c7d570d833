package supervisor

import (
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
)

// kept are the capabilities (capabilities(7)) that a supervisor has after its start, over a
// user namespace that nobody else is in: CAP_NET_ADMIN, for IP_TRANSPARENT sockets, for the
// routes of clients and for the interface of a restarted driver; CAP_NET_BIND_SERVICE, for
// clients whose port is below 1024; CAP_SYS_ADMIN, for threads of rootlessport, which move into
// the hub's network namespace when there are ports. The driver gets rights of its own at
// execve(2), as uid 0 of that user namespace, out of the bounding set: so that set cannot be
// emptied, and no_new_privs cannot be set.
const kept = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_ADMIN

// dropCapabilities gives up all others, in every thread.
func dropCapabilities() error {
	if err := confine.SetCapabilities(kept); err != nil {
		// ENOTSUP: with cgo there may be threads that Go does not know.
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "giving up the supervisor's capabilities: %v", err), "a binary that was built with cgo cannot do it, build with CGO_ENABLED=0")
	}
	return nil
}
