// Package root attaches a container as root: the built-in network, or the CNI plugins of
// the host, the delegates, make the interface, and then the host ports are published. It is
// the mirror of package rootless.
//
// [Network] is the network of one attachment. Its Add, Check and Del are the seam that
// package plugin has with both; Status and GC are what only root mode has to say to those
// verbs. Start reading at Add in network.go. Where things are:
//
//	network.go   Add, Check, Del, Status
//	chain.go     the one place that chooses what makes the interface
//	builtin.go   the built-in network, as one of the choices
//	names.go     the name server of the built-in network
//	conflist.go  the conflist that the key delegates names
//	ports.go     which ports are published, and how
//	siblings.go  ports of a container that is in several networks
//	heirs.go     who publishes them when the one that did is gone
//	gc.go        what no record explains
//
// It may import bridge, names, delegate, portmap/nat, record, flock, inside and conf.
package root
