// Package nat publishes host ports as root, in the network namespace of the
// calling thread. It is what the standard portmap plugin does, at constant cost
// and with owners.
//
// # What a published port does
//
// A new connection to an address of the host and a published port goes to the
// container's address and port: from another machine, from the host itself, over
// 127.0.0.1 (not over ::1, which the kernel cannot translate), and from
// containers, the one that publishes the port included. With SNAT the
// connections whose answers would not come back through the host otherwise are
// masqueraded: those from 127.0.0.0/8 and those that leave by the interface they
// came in by (hairpin). Every other connection shows the client's own address,
// and without SNAT all do.
//
// Reaching a container from 127.0.0.1 needs route_localnet=1 on the host's side
// of the attachment, which would also let containers reach the host's loopback
// services (CVE-2020-8558). So packets to 127.0.0.0/8 that arrive by any
// interface but lo are dropped while ports are published. When the last owner
// on a bridge of a built-in network goes, [Backend.Del] takes the sysctl back; on any
// other bridge the previous value cannot be told apart from ours and it stays; a veth
// goes with its container.
//
// # Owners
//
// Everything in the kernel carries the mark of the attachment that asked for it
// ([conf.Key]). Del removes what bears its owner's mark and nothing else, so that
// an address or port that meanwhile belongs to another attachment is safe.
//
// # Two backends
//
// nftables works over netlink only, in one table "inet ambi_portmap" (see
// nftlayout.go), with one transaction per call and one map element per port.
// iptables is for hosts without nf_tables: chains named AMBI-*, a bounded number
// of processes per call whatever the number of ports.
//
// Files named nft… are about the first, files named ipt… about the second, and all
// others about both. Start reading at [Backend] in nat.go, then nftlayout.go or
// iptruleset.go, which show the rules. The package imports conf and flock.
package nat
