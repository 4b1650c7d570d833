// Package rootless gives a container its network without rights on the host: it
// puts a driver behind the container's interface and publishes host ports with
// rootlessport (portmap/forward).
//
// # Processes
//
// The CNI verb binds the host ports in the caller's namespaces and starts one
// long-lived process, the supervisor, in the user namespace that owns the
// container's network namespace, but still in the host's network namespace. The
// supervisor starts the driver (rootless/driver), configures the interface over
// netlink, forwards ports, restarts a driver that died, answers on a control
// socket, and leaves with everything when the container's namespace is gone.
//
// A shared network (shared.go) is a hub: a user and network namespace in which there is what
// root has on the host, with one supervisor and one driver for all its members.
//
// # Rooms
//
// This room has the CNI verbs' part (Network in network.go: Add, Check, Del), what it
// starts a supervisor with (launch.go, userns.go) and the ports of one that runs
// (ports.go). Below it are
//
//	hub         which hubs there are, and who is in them
//	link        the way into namespaces of other user namespaces
//	driver      the way out: which program, its addresses, its process
//	supervisor  the life of the long-lived process, and for whom it is lived
//	netns       the container's namespace: interface, addresses, source routes
//	plan        the interface as it shall be, which those three pass to each other
//
// It may import rootless/supervisor, rootless/driver, rootless/plan, rootless/hub,
// rootless/link, bridge, names, nlsock, portmap/forward, record, flock and conf. Start at
// Network.Add.
package rootless
