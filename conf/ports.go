package conf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Protocol is the transport protocol of a port mapping: tcp, udp or sctp.
type Protocol string

// The protocols of CONVENTIONS.md, portMappings.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PortMapping publishes one port of the container on the host (CONVENTIONS.md,
// capability portMappings).
type PortMapping struct {
	HostPort      uint16   `json:"hostPort"`      // 1–65535
	ContainerPort uint16   `json:"containerPort"` // 1–65535
	Protocol      Protocol `json:"protocol"`
	// HostIP is the address to listen on; it may carry an IPv6 zone. The zero
	// Addr means every IPv4 and IPv6 address of the host.
	HostIP netip.Addr `json:"hostIP"`
}

// String is the field's way to write a mapping: 127.0.0.1:8080->80/tcp.
func (m PortMapping) String() string {
	return fmt.Sprintf("%s->%d/%s", m.HostAddr(), m.ContainerPort, m.Protocol)
}

// HostAddr is the host side of the mapping, "127.0.0.1:8080", "[::1]:8080", or
// "*:8080" for every address.
func (m PortMapping) HostAddr() string {
	if !m.HostIP.IsValid() {
		return fmt.Sprintf("*:%d", m.HostPort)
	}
	return netip.AddrPortFrom(m.HostIP, m.HostPort).String()
}

// ParsePort reads a mapping as people write it, and as String shows it:
// [HOSTIP:]HOSTPORT[:CONTAINERPORT][/PROTOCOL]. An IPv6 address is in brackets, *
// is every address. Without a container's port ContainerPort is 0; without a
// protocol it is tcp.
func ParsePort(text string) (PortMapping, error) {
	bad := Errorf(types.ErrInvalidNetworkConfig, "%q is no port: it is written [HOSTIP:]HOSTPORT[:CONTAINERPORT][/PROTOCOL], such as 8080:80, 127.0.0.1:8080:80/tcp or [::1]:5353:53/udp", text)
	rest, protocol, _ := strings.Cut(strings.Replace(text, "->", ":", 1), "/")
	m := PortMapping{}
	var err error
	if m.Protocol, err = parseProtocol("protocol", quote(protocol)); err != nil {
		return m, err
	}
	host, ports := hostAndPorts(rest)
	if host != "*" {
		if m.HostIP, err = parseHostIP("hostIP", quote(host)); err != nil {
			return m, err
		}
	}
	for i, number := range strings.Split(ports, ":") {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || i > 1 {
			return m, bad
		}
		if i == 0 {
			m.HostPort = uint16(n)
		} else {
			m.ContainerPort = uint16(n)
		}
	}
	return m, nil
}

func quote(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a text never fails
	return b
}

// hostAndPorts takes the address off: what is in brackets, or holds a dot, or is a
// star.
func hostAndPorts(s string) (host, ports string) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if host, ports, ok := strings.Cut(inner, "]:"); ok {
			return host, ports
		}
	}
	if first, rest, ok := strings.Cut(s, ":"); ok && (first == "*" || strings.Contains(first, ".")) {
		return first, rest
	}
	return "*", s
}

const portRange = "a port is a number from 1 to 65535"

// parsePortMappings reads runtimeConfig.portMappings. A mapping with hostPort 0
// is not published (Kubernetes sends it) and is left out.
func parsePortMappings(path string, raw json.RawMessage) ([]PortMapping, error) {
	items, err := openMappings(path, raw)
	if err != nil {
		return nil, err
	}
	mappings := make([]PortMapping, 0, len(items))
	seen := make(map[PortMapping]bool, len(items))
	var m PortMapping
	f := m.fields()
	for i, item := range items {
		m = PortMapping{Protocol: TCP}
		if err := m.parse(fmt.Sprintf("%s[%d]", path, i), item, f); err != nil {
			return nil, err
		}
		if m.HostPort == 0 {
			continue
		}
		hostSide := PortMapping{HostPort: m.HostPort, Protocol: m.Protocol, HostIP: m.HostIP}
		if seen[hostSide] {
			return nil, Mendf(Invalid(fmt.Sprintf("%s[%d]", path, i), item, fmt.Sprintf("host port %s/%s is asked for twice", m.HostAddr(), m.Protocol)), "each (hostIP, hostPort, protocol) may be there once")
		}
		seen[hostSide] = true
		mappings = append(mappings, m)
	}
	return mappings, overlapping(path, mappings)
}

// openMappings reads an array of mappings in one go, as there may be thousands.
func openMappings(path string, raw json.RawMessage) ([]members, error) {
	var objects []members
	if err := json.Unmarshal(raw, &objects); err == nil && !slices.ContainsFunc(objects, func(o members) bool { return o == nil }) {
		return objects, nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, Invalid(path, raw, "it is an array of {hostPort, containerPort, protocol, hostIP}")
	}
	objects = make([]members, len(items))
	for i, item := range items {
		var err error
		if objects[i], err = openObject(fmt.Sprintf("%s[%d]", path, i), item); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

// overlapping refuses a mapping of every address beside another one of the same
// port: the second could never be bound.
func overlapping(path string, mappings []PortMapping) error {
	type port struct {
		number uint16
		proto  Protocol
	}
	all := make(map[port][]PortMapping)
	for _, m := range mappings {
		if !m.HostIP.IsValid() || m.HostIP.IsUnspecified() {
			p := port{m.HostPort, m.Protocol}
			all[p] = append(all[p], m)
		}
	}
	for _, m := range mappings {
		for _, wide := range all[port{m.HostPort, m.Protocol}] {
			sameFamily := !wide.HostIP.IsValid() || !m.HostIP.IsValid() || wide.HostIP.Is4() == m.HostIP.Is4()
			if wide != m && sameFamily {
				return Invalid(path, m, fmt.Sprintf("host port %d/%s is asked for twice: as %s and as %s", m.HostPort, m.Protocol, wide, m))
			}
		}
	}
	return nil
}

// parse reads one mapping by its own fields, which are the same for all.
func (m *PortMapping) parse(path string, object members, own fields) error {
	if err := object.decodeFolded(path, own, noKey); err != nil {
		return err
	}
	if m.ContainerPort == 0 {
		return Mendf(Invalid(path, object, "containerPort is missing"), portRange)
	}
	return nil
}

func (m *PortMapping) fields() fields {
	return fields{
		"hostPort": func(key string, raw json.RawMessage) (err error) {
			m.HostPort, err = parsePort(key, raw, true)
			return err
		},
		"containerPort": func(key string, raw json.RawMessage) (err error) {
			m.ContainerPort, err = parsePort(key, raw, false)
			return err
		},
		"protocol": func(key string, raw json.RawMessage) (err error) {
			m.Protocol, err = parseProtocol(key, raw)
			return err
		},
		"hostIP": func(key string, raw json.RawMessage) (err error) {
			m.HostIP, err = parseHostIP(key, raw)
			return err
		},
	}
}

func parsePort(key string, raw json.RawMessage, zeroOK bool) (uint16, error) {
	var n int64
	if err := json.Unmarshal(raw, &n); err != nil || n < 0 || n > 65535 || (n == 0 && !zeroOK) {
		return 0, Invalid(key, raw, portRange)
	}
	return uint16(n), nil
}

func parseProtocol(key string, raw json.RawMessage) (Protocol, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", Invalid(key, raw, "it is a text: tcp, udp or sctp")
	}
	switch p := Protocol(strings.ToLower(s)); p {
	case "":
		return TCP, nil
	case TCP, UDP, SCTP:
		return p, nil
	}
	return "", Unsupported(key, s, "the protocols are tcp, udp and sctp")
}

func parseHostIP(key string, raw json.RawMessage) (netip.Addr, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return netip.Addr{}, Invalid(key, raw, "it is a text: an IPv4 or IPv6 address, or empty for all")
	}
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsMulticast() || (a.Is4In6() && a.Zone() != "") {
		return netip.Addr{}, Invalid(key, s, "it is an IPv4 or IPv6 address of this host, or empty for all")
	}
	return a.Unmap(), nil
}

// FirstClash is the first of our mappings that cannot be published beside theirs.
func FirstClash(ours, theirs []PortMapping) (PortMapping, bool) {
	type port struct {
		protocol Protocol
		number   uint16
	}
	taken := map[port][]PortMapping{}
	for _, m := range theirs {
		p := port{m.Protocol, m.HostPort}
		taken[p] = append(taken[p], m)
	}
	for _, m := range ours {
		for _, other := range taken[port{m.Protocol, m.HostPort}] {
			if meet(m.HostIP, other.HostIP) {
				return m, true
			}
		}
	}
	return PortMapping{}, false
}

// meet says whether two host addresses have a client in common: one that is not given
// means all, 0.0.0.0 and :: all of their family.
func meet(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a == b {
		return true
	}
	return a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}
