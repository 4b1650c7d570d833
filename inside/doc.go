// Package inside looks into another network namespace than our own, whose links,
// addresses and routes a netlink socket shows that was made there. To make the socket
// needs the right to enter it (setns(2)): CAP_SYS_ADMIN over it and in our own user
// namespace.
//
// It imports nothing of ours. Start at [Open].
package inside
