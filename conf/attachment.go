package conf

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// Key names an attachment: a container may be in one network with several
// interfaces, and in several networks (CNI specification 1.1.0, section 2).
type Key struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// String is the key as it appears in messages: network/containerID/ifName.
func (k Key) String() string { return k.Network + "/" + k.ContainerID + "/" + k.IfName }

// Attachment is everything a verb needs, parsed once at the edge. Nothing below
// reads the environment, standard input or the command line.
type Attachment struct {
	Key
	NetnsPath string // CNI_NETNS verbatim; may be empty on DEL
	CNIArgs   string // CNI_ARGS verbatim
	Path      []string
	NetConf   *NetConf

	// What the container asked for, the order of precedence already applied:
	// CNI_ARGS < args.cni < runtimeConfig.
	Ports []PortMapping
	IPs   []netip.Prefix // /32 or /128 where no prefix length was given
	MAC   string         // empty: any
	// Names are all that the container is called, its own name first; not all of them
	// need be possible in DNS.
	Names []string
	// Bandwidth is what runtimeConfig says; zero: no limit.
	Bandwidth Bandwidth
}

// Bandwidth limits what a container receives and sends: rates in bits per second,
// bursts in bits; zero is no limit (CONVENTIONS.md, "bandwidth").
type Bandwidth struct {
	IngressRate, IngressBurst uint64 // what the container receives
	EgressRate, EgressBurst   uint64 // what it sends
}

// Env is the CNI environment of one call, as the runtime set it.
type Env struct {
	ContainerID string
	NetnsPath   string
	IfName      string
	Args        string
	Path        []string
}

// NewAttachment joins the environment and the network configuration. An error is
// one of CNI_ARGS; the attachment is returned with what could be read of it, as with
// Parse.
func NewAttachment(env Env, n *NetConf) (*Attachment, error) {
	args, err := ParseCNIArgs(env.Args)
	a := &Attachment{
		Key:       Key{Network: n.Name, ContainerID: env.ContainerID, IfName: env.IfName},
		NetnsPath: env.NetnsPath,
		CNIArgs:   env.Args,
		Path:      env.Path,
		NetConf:   n,
		Ports:     n.RuntimeConfig.PortMappings,
		Bandwidth: n.RuntimeConfig.Bandwidth,
		MAC:       firstNonEmpty(n.RuntimeConfig.MAC, n.Args.MAC, args.MAC),
	}
	a.Names = namesOf(a, args)
	switch {
	case len(n.RuntimeConfig.IPs) > 0:
		a.IPs = n.RuntimeConfig.IPs
	case len(n.Args.IPs) > 0:
		a.IPs = n.Args.IPs
	case args.IP.IsValid():
		a.IPs = []netip.Prefix{args.IP}
	}
	return a, err
}

// namesOf are the names of a container: what the engine calls it, the name it gave itself,
// its aliases in this network, and its ID as engines show it.
func namesOf(a *Attachment, args CNIArgs) (names []string) {
	const shortID = 12
	all := append(slices.Clone(args.Names), a.NetConf.Args.Hostname)
	for _, network := range []string{a.Network, ThisNetwork} {
		all = append(all, a.NetConf.RuntimeConfig.Aliases[network]...)
	}
	for _, name := range append(all, a.ContainerID[:min(len(a.ContainerID), shortID)]) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func firstNonEmpty(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

// RawRuntimeConfig is the part of runtimeConfig that a plugin with these
// capabilities asks for, as received; nil when there is none (specification
// section 3, "Deriving runtimeConfig").
func (a *Attachment) RawRuntimeConfig(capabilities map[string]bool) map[string]json.RawMessage {
	var share map[string]json.RawMessage
	for name, raw := range a.NetConf.RuntimeConfig.Raw {
		if capabilities[name] {
			if share == nil {
				share = make(map[string]json.RawMessage)
			}
			share[name] = raw
		}
	}
	return share
}
