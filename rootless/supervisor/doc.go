// Package supervisor is the one long-lived process of a rootless attachment: its life,
// and what others need to start it, ask it and find it.
//
// The life (life.go) is the same for whomever it is lived: it reads the configuration,
// starts the driver and starts it again when that has died, answers on the control
// socket, gives up capabilities and memory, and leaves when it is told to or when nobody
// is left to live for, taking down what it started. It holds BASE.alive locked, together
// with the driver (alive.go).
//
// For whom it lives is its tenant (tenant.go): one container (container.go), with its
// namespace, its published ports and its record; or a hub (hub.go), with its namespace and
// the ports of its members. A hub answers before it has a driver, so that its first member
// is connected meanwhile; it keeps CAP_SYS_ADMIN, over a namespace that nobody else is in.
//
// A supervisor depends on nothing of its caller: it has a session of its own, "/"
// as its folder, no descriptor that it was not given, and, once it is ready, no
// capability but CAP_NET_ADMIN and CAP_NET_BIND_SERVICE (see caps.go). What it shares
// with the caller is the cgroup: a service manager that kills the whole group kills
// it, too, and CHECK and GC find that out.
//
// It imports rootless/driver, rootless/netns, rootless/plan, rootless/hub, rootless/link, names, portmap/forward, record,
// flock and conf. Start at Main.
package supervisor
