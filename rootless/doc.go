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
package rootless
