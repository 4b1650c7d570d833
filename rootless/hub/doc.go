// Package hub knows which hubs there are: a hub is the user and network namespace of a
// rootless shared network, one per network and user namespace of its callers. Each has a
// folder in the state folder, NETWORK.USERNS.hub, with
//
//	alive   held (flock) by the supervisor and the driver while they live
//	hub.json what was started (State)
//	ipam/   the addresses of its members, as bridge lays them out
//	log     the supervisor's log
//	sock    its control socket
//
// The folder itself is the hub's lock. Its members are the attachments whose records
// name it, and nobody else.
//
// It imports rootless/driver, rootless/plan, record and flock. Start at Of.
package hub
