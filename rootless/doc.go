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
// # Rooms
//
// This room has the CNI verbs' part (Network in network.go: Add, Check, Del), what it
// starts a supervisor with (launch.go, userns.go) and the ports of one that runs
// (ports.go). Below it are
//
//	driver      the way out: which program, its addresses, its process
//	supervisor  the life of the long-lived process, and for whom it is lived
//	netns       the container's namespace: interface, addresses, source routes
//	plan        the interface as it shall be, which those three pass to each other
//
// It may import rootless/supervisor, rootless/driver, rootless/plan, portmap/forward,
// record and conf. Start at Network.Add.
package rootless
