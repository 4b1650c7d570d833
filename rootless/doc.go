// Package rootless gives a container its network without rights on the host: it connects
// the container with a hub, a user and network namespace that has a driver as its way out, and
// publishes host ports with rootlessport (portmap/forward).
//
// # Processes
//
// The CNI verb binds the host ports in the caller's namespaces and starts, with the first
// member of a hub, one long-lived process, the supervisor, in a user namespace that nobody else
// is in, but still in the host's network namespace. The supervisor makes the hub's network
// namespace, starts the driver (rootless/driver), forwards ports, restarts a driver that died,
// answers on a control socket, and leaves with everything when the containers' namespaces are
// gone. The verb makes the link between hub and container (rootless/link): nothing long-lived is
// in a container's namespaces.
//
// A shared network (shared.go) has in its hub what root has on the host; a private one
// (private.go) is a hub with one member, and routes between container and driver.
//
// # Rooms
//
// This room has the CNI verbs' part (Network in network.go: Add, Check, Del), what it
// starts a supervisor with (launch.go), the container's namespaces (userns.go) and the ports of
// an attachment that runs (ports.go). Below it are
//
//	hub         which hubs there are, and who is in them
//	link        the way into namespaces of other user namespaces
//	driver      the way out: which program, its addresses, its process
//	supervisor  the life of the long-lived process, and the hub that it is lived for
//	netns       the hub's namespace: the driver's interface, source routes
//	plan        an interface as it shall be, which those three pass to each other
//
// It may import rootless/supervisor, rootless/driver, rootless/plan, rootless/hub,
// rootless/link, bridge, names, scope, nlsock, portmap/forward, record, flock and conf. Start at
// Network.Add.
package rootless
