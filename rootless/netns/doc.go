// Package netns is the network namespace of a hub as a process outside reaches it:
// a thread that is inside and makes sockets, the driver's interface with its addresses and
// routes, and the source routes that bring replies of published ports back.
//
// A socket belongs to the network namespace it was created in, whoever uses it
// later (network_namespaces(7)). So one locked thread stays in the hub's namespace and only
// creates sockets; rootlessport's workers, locked threads too, come
// there as well, and use the listening sockets that were made outside. Everything else
// of the process is in the host's namespace. None of these threads could come back:
// setns(2) into the host's namespace needs rights there that an unprivileged user does
// not have.
//
// It imports rootless/plan, nlsock, portmap/forward and conf. Start at Make.
package netns
