// Package forward is rootlessport: it publishes ports of a container without
// root, in user space, and keeps the client's source address.
//
// # Where things live
//
// The listening sockets are bound in the host's network namespace ([Listen]) and
// handed to a [Forwarder], which accepts there and reaches the container by
// sockets made inside the container's namespace ([Namespace]). A socket belongs
// to the namespace it was created in, whoever uses it later, so one process moves
// the bytes and no data crosses a process boundary.
//
// # Workers
//
// A few workers, each one goroutine around its own epoll instance, do all the
// work on raw non-blocking descriptors: a connection costs a few hundred bytes
// and no goroutine, a listener is one more registration. A forwarder without
// ports has no worker at all.
//
// TCP is relayed by copying through one buffer per worker; a direction that moves
// a lot changes to splice(2) through a pipe of a small bounded pool. While a reader
// stands still, what it does not take stays in the kernel with its sender, but for
// 4 KiB at the most. UDP has one
// connected socket per flow (a client's conversation) and moves datagrams in
// batches (recvmmsg(2), sendmmsg(2)) through buffers shared by all flows.
//
// # Source address
//
// The socket inside is bound to the client's own address with IP_TRANSPARENT
// (ip(7)); policy routing, which [Namespace] installs, brings the replies back.
// Addresses that a service must never see from outside, such as 127.0.0.1
// (CVE-2021-20199), and clients that cannot be preserved, are replaced by the
// gateway's address.
package forward
