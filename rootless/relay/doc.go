// Package relay is a way out of a hub that needs nothing installed and has no TCP in user
// space: in the hub the kernel ends what the containers begin, and portmap/forward's
// engine, turned round, goes on with sockets on the host.
//
//	container ── veth ── hub: prerouting ──┬── a transparent socket is there ── it ──┐
//	                                       └── none: default route ── tun            │
//	                                                                   │             │
//	supervisor:          Relay.Packet (a first SYN, a first datagram, an echo) ◂┘    ├── engine ── sockets on the host
//	                     Dial: when the destination has answered, the packet is      │
//	                     written into the tun again, and is led to the listener ─────┘
//
// So connect(2) in the container takes as long as the destination does; what that refuses
// is refused with a RST, what cannot be reached is told by ICMP, and of what does not
// answer nothing is heard. Then no packet of the connection comes by the tun any more.
//
// What is told to a container (RST, ICMP) goes out by raw sockets of the hub: what the
// tun writes would be forwarded, and a firewall in the hub that looks for connections would
// not know it.
//
// Nothing that goes this way is tracked by the hub's netfilter (notrack), so nothing of it is
// masqueraded either: the engine has to know who it is from.
//
// The name server is at an address that is the hub's own: what is for it never comes by the tun,
// and its port 53 is names' forwarder, which asks from the host's side.
//
// It imports names, portmap/forward and conf. Start at Start in relay.go; hub.go has what is
// made in the hub, packet.go the formats, policy.go who may be reached.
package relay
