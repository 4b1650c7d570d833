// Package bridge makes the built-in network: what a container gets when no delegates
// are configured. A bridge on the host with the gateway's address, a veth pair between
// it and the container, addresses, default routes, masquerading, isolation, bandwidth
// limits. All of it over netlink, in this process; no program is started, but for
// iptables on a host where that drops what is forwarded.
//
// Start with [Network] and its methods Add, Check, Del, Holders, Collect and Restore. Add is
// a straight list of steps (add.go); what an Add that failed has made, Del takes away.
//
// # Two sides
//
// Nothing here assumes which network namespace a thread is in. The caller hands over
// both sides as values: [Host], the side of the bridge, and [Container]. As root the
// host's side is the host; without root it is the hub, which no thread of this process
// can enter.
//
// # What is ours
//
// The kernel is the account of what there is; nothing is kept beside it but the address
// files, which are host-local's own in place and form. A bridge bears its network in its
// alias ("ambi web"), a container's interface on the host its attachment ("ambi web
// 4a5b eth0"), and its name is made from that, so that DEL and GC find it when every
// record is lost, and touch nothing else. The firewall is in layout.go, as nft shows it.
//
// It may import nlsock, flock and conf.
package bridge
