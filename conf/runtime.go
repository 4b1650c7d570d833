package conf

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// parseRuntimeConfig reads the capabilities that ambi serves itself and keeps all
// of them as received for delegates.
func (n *NetConf) parseRuntimeConfig(path string, raw json.RawMessage) error {
	object, err := openObject(path, raw)
	if err != nil {
		return err
	}
	n.RuntimeConfig.Raw = object
	return object.decode(path, n.RuntimeConfig.fields(), anyKey)
}

// Wants says whether the runtime sent anything but null or nothing for a capability.
func (rc *RuntimeConfig) Wants(capability string) bool {
	switch string(rc.Raw[capability]) {
	case "", "null", "{}":
		return false
	}
	return true
}

func (rc *RuntimeConfig) fields() fields {
	return fields{
		"portMappings": func(path string, raw json.RawMessage) (err error) {
			rc.PortMappings, err = parsePortMappings(path, raw)
			return err
		},
		"ips": func(path string, raw json.RawMessage) (err error) {
			rc.IPs, err = parseIPs(path, raw)
			return err
		},
		"mac":     mac(&rc.MAC),
		"aliases": rc.parseAliases,
		"dns": func(path string, raw json.RawMessage) error {
			// CONVENTIONS.md calls them servers, searches and options here.
			return decodeFolded(path, raw, rc.dnsFields(), anyKey)
		},
		"bandwidth": func(path string, raw json.RawMessage) error {
			// containerd calls them IngressRate and so on.
			return decodeFolded(path, raw, rc.Bandwidth.fields(), anyKey)
		},
	}
}

// parseAliases takes them in both forms that there are: CONVENTIONS.md has an array of the
// names in this network, Podman sends an object with such an array for each network.
func (rc *RuntimeConfig) parseAliases(path string, raw json.RawMessage) error {
	var names []string
	if json.Unmarshal(raw, &names) == nil {
		rc.Aliases = map[string][]string{ThisNetwork: names}
		return nil
	}
	return into(&rc.Aliases, "an array of names, or an object of such arrays by network")(path, raw)
}

func (b *Bandwidth) fields() fields {
	const rate, burst = "a number of bits per second", "a number of bits"
	return fields{
		"ingressRate":  into(&b.IngressRate, rate),
		"ingressBurst": into(&b.IngressBurst, burst),
		"egressRate":   into(&b.EgressRate, rate),
		"egressBurst":  into(&b.EgressBurst, burst),
	}
}

// Validate refuses what no limit can be made of, as the plugin bandwidth does.
func (b Bandwidth) Validate() error {
	for _, way := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		switch {
		case way.rate > 0 && way.rate < 8:
			return Invalid("runtimeConfig.bandwidth."+way.name+"Rate", way.rate, "it is a number of bits per second, 0 for no limit or at least 8")
		case (way.rate == 0) != (way.burst == 0):
			return Invalid("runtimeConfig.bandwidth."+way.name+"Burst", way.burst, fmt.Sprintf("it is a number of bits, and goes with %sRate: either both are 0, or none is", way.name))
		case way.burst/8 >= math.MaxUint32:
			return Invalid("runtimeConfig.bandwidth."+way.name+"Burst", way.burst, "it is a number of bits, less than 4 GiB of them")
		}
	}
	return nil
}

func (rc *RuntimeConfig) dnsFields() fields {
	return fields{
		"servers":  into(&rc.DNS.Nameservers, "an array of addresses"),
		"searches": into(&rc.DNS.Search, "an array of domains"),
		"options":  into(&rc.DNS.Options, "an array of texts"),
	}
}

const (
	ipExpected  = "an IPv4 or IPv6 address, with or without a prefix length"
	macExpected = "a MAC address of six bytes, such as 02:42:ac:11:00:02"
)

func parseIPs(path string, raw json.RawMessage) ([]netip.Prefix, error) {
	var texts []string
	if err := json.Unmarshal(raw, &texts); err != nil {
		return nil, Invalid(path, raw, "it is an array of texts, each "+ipExpected)
	}
	ips := make([]netip.Prefix, 0, len(texts))
	for i, s := range texts {
		ip, err := parseIP(fmt.Sprintf("%s[%d]", path, i), s)
		if err != nil {
			return nil, err
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

// parseIP reads an address with or without a prefix length; without one the
// returned prefix is that of a single address (/32 or /128).
func parseIP(path, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		var a netip.Addr
		a, err = netip.ParseAddr(s)
		p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		if a.Zone() != "" {
			return netip.Prefix{}, Invalid(path, s, "it is "+ipExpected+", and without a zone")
		}
	}
	if a := p.Addr(); err != nil || p.Bits() == 0 || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Prefix{}, Invalid(path, s, "it is "+ipExpected)
	}
	return p, nil
}

// mac reads a MAC address into target.
func mac(target *string) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) (err error) {
		var s string
		if err := into(&s, macExpected)(path, raw); err != nil {
			return err
		}
		*target, err = parseMAC(path, s)
		return err
	}
}

// parseMAC returns the address the way the kernel's is shown, so that the two can
// be compared; empty for empty.
func parseMAC(path, s string) (string, error) {
	if s == "" {
		return "", nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return "", Invalid(path, s, "it is "+macExpected+", not a multicast one and not all zero")
	}
	return mac.String(), nil
}

// parseArgs reads args.cni; everything else under args belongs to others.
func (n *NetConf) parseArgs(path string, raw json.RawMessage) error {
	return decodeObjectTolerant(path, raw, fields{
		"cni": func(path string, raw json.RawMessage) error {
			return decodeObjectTolerant(path, raw, n.Args.fields(), anyKey)
		},
	}, anyKey)
}

func (a *Args) fields() fields {
	return fields{
		"ips": func(path string, raw json.RawMessage) (err error) {
			a.IPs, err = parseIPs(path, raw)
			return err
		},
		"mac":         mac(&a.MAC),
		"hostname":    into(&a.Hostname, "a text"),
		"slirp4netns": into(&a.Options, "an array of texts \"option=value\""),
	}
}

// CNIArgs is what ambi reads of the environment variable CNI_ARGS.
type CNIArgs struct {
	IP    netip.Prefix // zero when absent
	MAC   string
	Names []string // of the container
}

// ParseCNIArgs reads "KEY=VALUE;KEY=VALUE". K8S_ keys are known to everybody;
// any other unknown key is an error unless IgnoreUnknown is true
// (CONVENTIONS.md, CNI_ARGS). Errors have code 4.
func ParseCNIArgs(s string) (CNIArgs, error) {
	var args CNIArgs
	ignoreUnknown, unknown := false, ""
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return CNIArgs{}, Mendf(invalidEnv("pair %q has no \"=\"", pair), "it is a list KEY=VALUE;KEY=VALUE")
		}
		if strings.Contains(value, "=") {
			// types.LoadArgs of libcni, with which delegates read it, refuses it.
			return CNIArgs{}, Mendf(invalidEnv("pair %q has more than one \"=\"", pair), "it is a list KEY=VALUE;KEY=VALUE")
		}
		var err error
		switch {
		case key == "IP" && value != "":
			args.IP, err = parseIP("IP", value)
		case key == "MAC":
			args.MAC, err = parseMAC("MAC", value)
		case key == "IgnoreUnknown":
			ignoreUnknown, err = parseLooseBool(value)
		case key == "IP", strings.HasPrefix(key, "K8S_"):
		default:
			unknown = pair
		}
		if key == "K8S_POD_NAME" || key == "NERDCTL_CNI_DHCP_HOSTNAME" {
			args.Names = append(args.Names, value)
		}
		if err != nil {
			return CNIArgs{}, invalidEnv("%s=%s is not valid: %v", key, value, err)
		}
	}
	if unknown != "" && !ignoreUnknown {
		return CNIArgs{}, Mendf(invalidEnv("%q is not known to ambi", unknown), "add IgnoreUnknown=1 to have unknown keys passed over")
	}
	return args, nil
}

// UsableCNIArgs is CNI_ARGS as far as every plugin can read it: the pairs that
// parse and have a value, with unknown keys passed over, for a key may be known to
// one plugin of a chain only. What a plugin refuses at ADD it refuses at each DEL,
// too, and then nobody could take down what others did.
func UsableCNIArgs(s string) string {
	const passOver = "IgnoreUnknown=1"
	var pairs []string
	passesOver := false
	for pair := range strings.SplitSeq(s, ";") {
		_, err := ParseCNIArgs(passOver + ";" + pair)
		key, value, _ := strings.Cut(pair, "=")
		ignore, _ := parseLooseBool(value)
		if err != nil || value == "" || key == "IgnoreUnknown" && !ignore {
			continue
		}
		passesOver = passesOver || key == "IgnoreUnknown"
		pairs = append(pairs, pair)
	}
	if len(pairs) > 0 && !passesOver {
		pairs = append([]string{passOver}, pairs...)
	}
	return strings.Join(pairs, ";")
}

func parseLooseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "true":
		return true, nil
	case "0", "false":
		return false, nil
	}
	return false, fmt.Errorf("it is 1, 0, true or false")
}

func invalidEnv(format string, args ...any) *types.Error {
	return Errorf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+format, args...)
}
