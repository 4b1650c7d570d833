// Package link makes links and all that hangs on them in network namespaces of other
// user namespaces than our own: it opens the way in ([Enter]), moves links from one
// namespace to another ([Move]), and carries everything that plugins have made in one
// to another ([Carry]). It decides nothing; who may be linked with whom is its users'
// business.
//
// # Who may do that
//
// A process has every capability over a user namespace that its uid has made from the
// user namespace in which the process is, and over all below that
// (user_namespaces(7)). So an ordinary user has every right over the networks of two
// containers that he has started, though neither container has one over the other. But
// he needs a netlink socket in each, and cannot enter them himself without losing his
// rights over the other one. So somebody else enters and opens the socket. A request
// sent on it with an explicit destination address is judged by the rights of its sender
// alone (net/netlink/af_netlink.c, __netlink_ns_capable). The files below /proc/sys/net
// are judged in the same way, by the rights of who opens them, and folders of another
// namespace's can be handed over like a socket.
//
// # The one who enters
//
// For a moment it is in the container's user namespace, whose root can trace what is in
// there. So it is a child that is forked without exec (an exec would have /proc/PID/root
// of the host open to him): not dumpable, with no open file but those that it needs, and
// with no Go in it, system calls only; fork.go.
//
// It imports nlsock. Start at [Enter] and [Carry].
package link
