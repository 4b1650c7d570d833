package conf

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
)

// Mode says which way gives the container its network.
type Mode string

// The modes; see docs/architecture.md, "Which mode".
const (
	ModeAuto     Mode = "auto"
	ModeRoot     Mode = "root"
	ModeRootless Mode = "rootless"
)

// Hardening says what becomes of a kernel that cannot confine the processes that stay.
type Hardening string

// The values of the key hardening.
const (
	HardeningBestEffort Hardening = "best-effort" // they go on without what it lacks
	HardeningRequire    Hardening = "require"     // ADD and STATUS are errors
)

// Backend is what publishes host ports as root.
type Backend string

// The backends of the key portmap.backend.
const (
	BackendAuto     Backend = "auto"
	BackendNFTables Backend = "nftables"
	BackendIPTables Backend = "iptables"
	BackendNone     Backend = "none" // a delegate publishes them, or nobody
)

// PortHandler is what publishes host ports without root.
type PortHandler string

// The port handlers of the key rootless.portHandler.
const (
	HandlerRootlessport PortHandler = "rootlessport"
	HandlerSlirp4netns  PortHandler = "slirp4netns"
)

// SourceIP is the client address that a service behind rootlessport sees.
type SourceIP string

// The values of the key rootless.sourceIP.
const (
	SourcePreserve SourceIP = "preserve" // the client's own
	SourceGateway  SourceIP = "gateway"  // the gateway's
)

// RootlessNetwork says which containers share a rootless network.
type RootlessNetwork string

// The values of the key rootless.network.
const (
	NetworkPrivate RootlessNetwork = "private" // this container has one for itself
	NetworkShared  RootlessNetwork = "shared"  // all containers of the network reach each other
)

// NetConf is one plugin entry of a conflist as the runtime hands it over on
// standard input (CNI specification 1.1.0, section 1 and "Deriving execution
// configuration from plugin configuration").
type NetConf struct {
	CNIVersion   string
	Name         string // network name
	Type         string
	Capabilities map[string]bool

	Mode      Mode
	Hardening Hardening
	Delegates []Delegate // nil when the key is absent, or names a conflist
	// DelegatesFrom is the key delegates when it is a text: the absolute path of a
	// conflist to wrap, or the name of one. Who has the host at hand reads it and
	// asks DelegatesOf.
	DelegatesFrom   string
	DelegateTimeout time.Duration // of one delegate's run; zero: none

	Bridge   Bridge // the built-in network
	Portmap  Portmap
	Rootless Rootless
	StateDir string // absolute, or empty for the default
	LogLevel string
	// LogLevelSet says that the key is there.
	LogLevelSet bool
	LogFile     string // absolute, or empty for standard error only

	DNS           types.DNS
	PrevResult    json.RawMessage // as received; nil when absent
	RuntimeConfig RuntimeConfig
	Args          Args

	// ValidAttachments is the list that GC got, under either of its two names; nil
	// when neither key is there.
	ValidAttachments []types.GCAttachment

	Raw json.RawMessage // the whole entry as received
}

// BuiltIn says whether the entry names no delegates, so that its network is the built-in
// one unless another plugin has made the interface.
func (n *NetConf) BuiltIn() bool { return len(n.Delegates) == 0 && n.DelegatesFrom == "" }

// Delegate is the configuration of one plugin that ambi runs as root.
type Delegate struct {
	Type         string
	Capabilities map[string]bool
	Raw          json.RawMessage // passed on byte for byte
}

// BridgePrefix begins the names of the bridges of built-in networks, unless
// the key bridge.name says otherwise. No other program names its bridges so.
const BridgePrefix = "ambi-"

// Bridge has the keys of the built-in network, which a container gets when there are
// no delegates and no prevResult.
type Bridge struct {
	Name         string       // link name; empty: made from the network's name
	Subnet       netip.Prefix // IPv4; zero: made from the network's name
	Subnet6      netip.Prefix // IPv6; zero: no IPv6
	MTU          int          // of bridge and containers; zero: that of the host's default route
	Isolate      bool         // other built-in networks reach its containers over published ports only
	DefaultRoute *bool        // through this network; nil: where the container has none of that family yet
	Keep         bool         // the bridge stays when its last container is gone
	Names        bool         // containers find each other by name
}

// Portmap has the keys of publishing host ports as root.
type Portmap struct {
	Backend Backend
	SNAT    bool // masquerade connections that would come back otherwise (hairpin, 127.0.0.1)
}

// DriverAuto leaves the choice of the driver to the host.
const DriverAuto = "auto"

// Rootless has the keys of the rootless network.
type Rootless struct {
	Network           RootlessNetwork
	Driver            string // its name, or auto
	CIDR              netip.Prefix
	MTU               int
	EnableIPv6        bool
	EnableIPv6Set     bool // asked for, so that a driver without it is an error
	AllowHostLoopback bool
	OutboundAddr      string // IPv4 address or interface name
	OutboundAddr6     string // IPv6 address or interface name
	DisableDNS        bool
	PortHandler       PortHandler
	SourceIP          SourceIP
	Sandbox           bool
	Seccomp           bool
	Path              string // absolute path of the driver, or empty to look it up
}

// RuntimeConfig is what the runtime asks for this container, by capability
// (CONVENTIONS.md, "Dynamic Plugin specific Fields").
type RuntimeConfig struct {
	PortMappings []PortMapping
	IPs          []netip.Prefix // /32 or /128 where the runtime gave no prefix length
	MAC          string
	DNS          types.DNS
	Bandwidth    Bandwidth
	Aliases      map[string][]string        // other names of the container, by network or ThisNetwork
	Raw          map[string]json.RawMessage // as received, for delegates
}

// ThisNetwork is the key of RuntimeConfig.Aliases for those that came without a network.
const ThisNetwork = ""

// Args is the part of args.cni that ambi reads (CONVENTIONS.md, "args").
type Args struct {
	IPs      []netip.Prefix
	MAC      string
	Hostname string
	Options  []string // of the network without root, "key=value"
}

// The limits of the MTU: a tap device takes 65521 (drivers/net/tun.c in Linux), and IPv6
// needs 1280 (RFC 8200, section 5). IPv4 itself needs 68 (RFC 791); but the TCP of Linux has 48
// bytes behind the headers in each segment (ip-sysctl, tcp_min_snd_mss, Linux 4.19.52), whatever the MTU.
const (
	minMTU     = 1280
	minMTU4    = 20 + 20 + 48
	maxMTU     = 65521
	defaultMTU = 65520
)

func defaults() NetConf {
	return NetConf{
		Mode:      ModeAuto,
		Hardening: HardeningBestEffort,
		Bridge:    Bridge{Isolate: true},
		Portmap:   Portmap{Backend: BackendAuto, SNAT: true},
		LogLevel:  "info",
		Rootless: Rootless{
			Driver: DriverAuto, CIDR: netip.MustParsePrefix("10.0.2.0/24"), MTU: defaultMTU, EnableIPv6: true,
			PortHandler: HandlerRootlessport, SourceIP: SourcePreserve, Sandbox: true, Seccomp: true,
		},
	}
}

// Parse reads and validates one plugin entry. Its errors are *types.Error with
// code 2, 6 or 7. What could be read is returned also with an error, for the verbs
// that undo: they have to do what they can.
func Parse(stdin []byte) (*NetConf, error) {
	n := defaults()
	n.Raw = stdin
	object, err := openObject("", stdin)
	switch {
	case err == nil:
	case json.Valid(stdin):
		return &n, Errorf(types.ErrDecodingFailure, "the network configuration is not a JSON object")
	default:
		return &n, Errorf(types.ErrDecodingFailure, "the network configuration is not JSON")
	}
	err = object.decode("", n.fields(), anyKey)
	return &n, cmp.Or(err, n.validate())
}

// validate holds what concerns more than one key.
func (n *NetConf) validate() error {
	if n.Name == "" {
		return Errorf(types.ErrInvalidNetworkConfig, "key \"name\", the network's name, is missing")
	}
	if err := n.notItself(n.Delegates); err != nil {
		n.Delegates = nil // nobody may run them, not even to undo
		return err
	}
	if err := n.applyOptions(); err != nil {
		return err
	}
	return cmp.Or(n.Bridge.validate(), n.Rootless.validate())
}

// Misspelt is the error about a key of the entry itself that is nearly one of ours.
// All other keys that are not ours are passed over there: runtimes and tools write
// keys of their own into every entry (Multus deviceID and pciBusID).
func (n *NetConf) Misspelt() error {
	object, err := openObject("", n.Raw)
	if err != nil {
		return nil // Parse has told
	}
	ours := n.fields()
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if ours[key] != nil || slices.Contains(foreign, key) || strings.Contains(key, "/") {
			continue
		}
		if meant := nearest(key, ours); meant != "" {
			return Mendf(Unsupported(key, object[key], "no such key"), "is %q meant? the keys of ambi are %s", meant, ours.names())
		}
	}
	return nil
}

// foreign are the keys of the specification that are nearly one of ours.
var foreign = []string{"cniVersions"}

func (n *NetConf) fields() fields {
	valid := into(&n.ValidAttachments, "an array of {containerID, ifname}")
	return fields{
		"cniVersion":                into(&n.CNIVersion, "a text"),
		"name":                      into(&n.Name, "a text"),
		"type":                      into(&n.Type, "a text"),
		"capabilities":              into(&n.Capabilities, "an object of true and false"),
		"dns":                       into(&n.DNS, "an object with nameservers, domain, search and options"),
		"mode":                      oneOf(&n.Mode, ModeAuto, ModeRoot, ModeRootless),
		"hardening":                 oneOf(&n.Hardening, HardeningBestEffort, HardeningRequire),
		"delegates":                 n.parseDelegates,
		"delegateTimeout":           duration(&n.DelegateTimeout),
		"bridge":                    object(n.Bridge.fields()),
		"portmap":                   object(n.Portmap.fields()),
		"snat":                      boolean(&n.Portmap.SNAT), // as the portmap plugin has it
		"backend":                   oneOf(&n.Portmap.Backend, BackendAuto, BackendNFTables, BackendIPTables, BackendNone),
		"rootless":                  object(n.Rootless.fields()),
		"stateDir":                  absolutePath(&n.StateDir),
		"logLevel":                  n.setLogLevel,
		"logFile":                   absolutePath(&n.LogFile),
		"prevResult":                keep(&n.PrevResult),
		"runtimeConfig":             n.parseRuntimeConfig,
		"args":                      n.parseArgs,
		"cni.dev/valid-attachments": valid,
		"cni.dev/attachments":       valid,
	}
}

func object(f fields) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error { return decodeObject(path, raw, f) }
}

func keep(target *json.RawMessage) func(string, json.RawMessage) error {
	return func(_ string, raw json.RawMessage) error {
		*target = raw
		return nil
	}
}

func absolutePath(target *string) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil || (s != "" && !filepath.IsAbs(s)) || strings.ContainsRune(s, 0) {
			return Invalid(path, raw, "it is an absolute path, or empty for the default")
		}
		*target = s
		return nil
	}
}

// duration reads a length of time such as "30s".
func duration(target *time.Duration) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error {
		var s string
		err := json.Unmarshal(raw, &s)
		if err == nil && s == "" {
			return nil
		}
		d, perr := time.ParseDuration(s)
		if err != nil || perr != nil || d <= 0 {
			return Invalid(path, raw, "it is a length of time such as 30s or 1m30s, or empty for none")
		}
		*target = d
		return nil
	}
}

func (n *NetConf) parseDelegates(path string, raw json.RawMessage) (err error) {
	const expected = "it is an array of plugin configurations, or a text: the name of a conflist in /etc/cni/net.d, or the absolute path of one"
	var items []json.RawMessage
	if json.Unmarshal(raw, &n.DelegatesFrom) == nil {
		if !conflistRefOK(n.DelegatesFrom) {
			return Invalid(path, raw, expected)
		}
		return nil
	}
	if err := json.Unmarshal(raw, &items); err != nil {
		return Invalid(path, raw, expected)
	}
	n.Delegates, err = parseDelegateList(path, items)
	return err
}

func parseDelegateList(path string, items []json.RawMessage) ([]Delegate, error) {
	delegates := make([]Delegate, 0, len(items))
	for i, item := range items {
		d, err := ParseDelegate(fmt.Sprintf("%s[%d]", path, i), item)
		if err != nil {
			return nil, err
		}
		delegates = append(delegates, d)
	}
	return delegates, nil
}

// ParseDelegate reads what ambi needs of a delegate's configuration and leaves
// the rest untouched in Raw.
func ParseDelegate(path string, raw json.RawMessage) (Delegate, error) {
	d := Delegate{Raw: raw}
	err := decodeObjectTolerant(path, raw, fields{
		"type":         into(&d.Type, "a text, the plugin's file name"),
		"capabilities": into(&d.Capabilities, "an object of true and false"),
	}, anyKey)
	if err != nil {
		return Delegate{}, err
	}
	if d.Type == "" || strings.ContainsAny(d.Type, "/\x00") {
		return Delegate{}, Invalid(join(path, "type"), d.Type, "it is the file name of a plugin in CNI_PATH, without a folder")
	}
	return d, nil
}

func (b *Bridge) fields() fields {
	return fields{
		"name": func(path string, raw json.RawMessage) error {
			var s string
			if err := json.Unmarshal(raw, &s); err != nil || (s != "" && !linkNameOK(s)) {
				return Invalid(path, raw, "it is a link name of at most 15 bytes without / : % and blanks")
			}
			b.Name = s
			return nil
		},
		"subnet":  subnet(&b.Subnet, netip.Addr.Is4, 30, "an IPv4 network such as 10.88.0.0/24, with room for a gateway and a container"),
		"subnet6": subnet(&b.Subnet6, netip.Addr.Is6, 126, "an IPv6 network such as fd00:1::/64, with room for a gateway and a container"),
		"mtu":     b.setMTU,
		"isolate": boolean(&b.Isolate),
		"defaultRoute": func(path string, raw json.RawMessage) error {
			b.DefaultRoute = new(bool)
			return boolean(b.DefaultRoute)(path, raw)
		},
		"keep":  boolean(&b.Keep),
		"names": boolean(&b.Names),
	}
}

// maxBridgeMTU is what the kernel gives a veth at most (ETH_MAX_MTU).
const maxBridgeMTU = 65535

// setMTU takes 0 for the default. What IPv6 needs is validated with the subnets.
func (b *Bridge) setMTU(path string, raw json.RawMessage) error {
	const expected = "a number from 88 to 65535 (from 1280 with bridge.subnet6), or 0 for that of the host's default route"
	if err := into(&b.MTU, expected)(path, raw); err != nil {
		return err
	}
	if b.MTU != 0 && (b.MTU < minMTU4 || b.MTU > maxBridgeMTU) {
		b.MTU = 0
		return Invalid(path, raw, "it is "+expected)
	}
	return nil
}

func (b *Bridge) validate() error {
	if b.MTU != 0 && b.MTU < minMTU && b.Subnet6.IsValid() {
		return Invalid("bridge.mtu", b.MTU, "IPv6 (bridge.subnet6) needs at least 1280")
	}
	return nil
}

func subnet(target *netip.Prefix, family func(netip.Addr) bool, longest int, expected string) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error {
		var s string
		err := json.Unmarshal(raw, &s)
		if err == nil && s == "" {
			return nil
		}
		p, perr := netip.ParsePrefix(s)
		if err != nil || perr != nil || !family(p.Addr()) || p.Addr().Is4In6() || p != p.Masked() || p.Bits() > longest || !forContainers(p) {
			return Invalid(path, raw, "it is "+expected)
		}
		*target = p
		return nil
	}
}

func (p *Portmap) fields() fields {
	return fields{
		"backend": oneOf(&p.Backend, BackendAuto, BackendNFTables, BackendIPTables, BackendNone),
		"snat":    boolean(&p.SNAT),
	}
}

func (r *Rootless) fields() fields {
	return fields{
		"network":           oneOf(&r.Network, NetworkPrivate, NetworkShared),
		"driver":            oneOf(&r.Driver, DriverAuto, "slirp4netns", "relay", "pasta"),
		"cidr":              r.setCIDR,
		"mtu":               into(&r.MTU, mtuExpected),
		"enableIPv6":        r.setEnableIPv6,
		"allowHostLoopback": boolean(&r.AllowHostLoopback),
		"outboundAddr":      into(&r.OutboundAddr, "an IPv4 address or an interface name"),
		"outboundAddr6":     into(&r.OutboundAddr6, "an IPv6 address or an interface name"),
		"disableDNS":        boolean(&r.DisableDNS),
		"portHandler":       oneOf(&r.PortHandler, HandlerRootlessport, HandlerSlirp4netns),
		"sourceIP":          oneOf(&r.SourceIP, SourcePreserve, SourceGateway),
		"sandbox":           boolean(&r.Sandbox),
		"seccomp":           boolean(&r.Seccomp),
		"path":              absolutePath(&r.Path),
	}
}

func (n *NetConf) setLogLevel(path string, raw json.RawMessage) error {
	n.LogLevelSet = true
	return oneOf(&n.LogLevel, "debug", "info", "warn", "error")(path, raw)
}

func (r *Rootless) setEnableIPv6(path string, raw json.RawMessage) error {
	r.EnableIPv6Set = true
	return boolean(&r.EnableIPv6)(path, raw)
}

func (r *Rootless) setCIDR(path string, raw json.RawMessage) error {
	var s string
	if err := into(&s, cidrExpected)(path, raw); err != nil {
		return err
	}
	p, ok := parseCIDR(s)
	if !ok {
		return Invalid(path, raw, "it is "+cidrExpected)
	}
	r.CIDR = p
	return nil
}

// parseCIDR reads the container's network, of which .2, .3 and .100 have a meaning.
func parseCIDR(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p, err == nil && p.Addr().Is4() && p.Bits() >= 1 && p.Bits() <= 25 && p == p.Masked() && forContainers(p)
}

// forContainers says whether a network may have hosts in it at all.
func forContainers(p netip.Prefix) bool {
	a := p.Addr()
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

const (
	cidrExpected = "an IPv4 network with a prefix from 1 to 25, such as 10.0.2.0/24: .2 is the gateway, .3 the name server, .100 the container"
	mtuExpected  = "a number from 88 to 65521 (from 1280 with IPv6)"
)

// validate holds what concerns more than one key; nothing here needs the host.
func (r *Rootless) validate() error {
	least := minMTU4
	if r.EnableIPv6 && r.EnableIPv6Set {
		least = minMTU
	}
	if r.MTU < least || r.MTU > maxMTU {
		return Invalid("rootless.mtu", r.MTU, "it is "+mtuExpected)
	}
	if r.MTU < minMTU {
		r.EnableIPv6 = false
	}
	return r.validateOutbound()
}

func (r *Rootless) validateOutbound() error {
	if !outboundOK(r.OutboundAddr, netip.Addr.Is4) {
		return Invalid("rootless.outboundAddr", r.OutboundAddr, "it is an IPv4 address or an interface name")
	}
	if !outboundOK(r.OutboundAddr6, netip.Addr.Is6) {
		return Invalid("rootless.outboundAddr6", r.OutboundAddr6, "it is an IPv6 address or an interface name")
	}
	if r.OutboundAddr6 != "" && !r.EnableIPv6 {
		return Invalid("rootless.outboundAddr6", r.OutboundAddr6, "it needs IPv6: set rootless.enableIPv6 to true")
	}
	return nil
}

// outboundOK says whether s is empty, an address of the family, or a possible
// interface name. Whether the interface exists is for who has the host at hand.
func outboundOK(s string, family func(netip.Addr) bool) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return family(a) && !a.Is4In6() && a.Zone() == "" // inet_pton(3) knows no zones
	}
	return s == "" || (linkNameOK(s) && !strings.ContainsAny(s, "=,"))
}

// linkNameOK says whether Linux takes s for the name of a new link
// (dev_valid_name in net/core/dev.c; a % would be a pattern of names).
func linkNameOK(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/:%\x00") && !strings.ContainsFunc(s, unicode.IsSpace)
}
