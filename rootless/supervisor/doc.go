// Package supervisor is the long-lived process of a hub that does its work: its life,
// and what others need to start it, ask it and find it.
//
// The life (life.go) reads the configuration, starts the driver and starts it again when that
// has died, answers on the control socket, gives up capabilities and memory, and leaves when it
// is told to or when nobody is left to live for, taking down what it started. It holds the file
// alive locked, together with the driver (alive.go).
//
// What it lives for is the hub (hub.go): its network namespace and the published ports of its
// members. It answers before it has a driver, so that its first member is connected meanwhile.
//
// Its twin is the keeper (rootless/keeper, twin.go): when one of the two dies the other starts it
// again. A supervisor that a keeper has started (again.go) goes on with what that has held.
//
// A supervisor depends on nothing of its caller: it has a session and a user namespace of its
// own, "/" as its folder, no descriptor that it was not given, and, once it is ready, no
// capability but three (see caps.go). What it shares
// with the caller is the cgroup: a service manager that kills the whole group kills
// it, too, with its keeper, and CHECK and GC find that out.
//
// It imports rootless/keeper, rootless/driver, rootless/netns, rootless/plan, rootless/hub, rootless/link, names, confine, scope, memory, portmap/forward, record,
// flock and conf. Start at Main.
package supervisor
