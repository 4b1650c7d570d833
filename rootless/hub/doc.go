// Package hub knows which hubs there are: a hub is the user and network namespace of a
// rootless network. A shared network has one per user namespace of its callers, a private
// one for each of its containers. Each has a folder in the state folder, NETWORK.USERNS.hub
// or NETWORK@CONTAINER@INTERFACE.hub, with
//
//	alive   held (flock) by the supervisor, its keeper and the driver while they live
//	hub.json what was started (State)
//	api     the driver's socket, where that publishes ports
//	ipam/   the addresses of its members, as bridge lays them out
//	log     the supervisor's log
//	sock    the control socket of the supervisor, which the keeper holds as well (present.go)
//
// The folder itself is the hub's lock. Its members are the attachments whose records
// name it, and nobody else.
//
// It imports rootless/driver, rootless/plan, record, flock and conf. Start at Of.
package hub
