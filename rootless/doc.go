// Package rootless gives a container its network without rights on the host: it
// puts a driver behind the container's interface and publishes host ports
// with rootlessport (portmap/forward).
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
// A supervisor depends on nothing of its caller: it has a session of its own, "/"
// as its folder, no descriptor that it was not given, and, once it is ready, no
// capability but CAP_NET_ADMIN and CAP_NET_BIND_SERVICE (see caps.go). What it shares
// with the caller is the cgroup: a service manager that kills the whole group kills
// it, too, and CHECK and GC find that out.
//
// # Threads inside
//
// A socket belongs to the network namespace it was created in, whoever uses it
// later (network_namespaces(7)). So one locked thread of the supervisor stays in
// the container's namespace and only creates sockets; rootlessport's workers,
// locked threads too, are there as well, and use the listening sockets that were
// made outside. Everything else runs in the host's namespace. None of these
// threads could come back: setns(2) into the host's namespace needs rights there
// that an unprivileged user does not have.
package rootless
