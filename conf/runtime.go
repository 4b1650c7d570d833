package conf

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

func indexKey(i int) string { return strconv.Itoa(i) }

// parseRuntimeConfig reads the capabilities that ambi serves itself and keeps all
// of them as received for delegates.
func (n *NetConf) parseRuntimeConfig(path string, raw json.RawMessage) error {
	rc := &n.RuntimeConfig
	if err := into(&rc.Raw, "an object")(path, raw); err != nil {
		return err
	}
	return decodeObjectTolerant(path, raw, fields{
		"portMappings": func(path string, raw json.RawMessage) (err error) {
			rc.PortMappings, err = parsePortMappings(path, raw)
			return err
		},
		"ips": func(path string, raw json.RawMessage) (err error) {
			rc.IPs, err = parseIPs(path, raw)
			return err
		},
		"mac": func(path string, raw json.RawMessage) error {
			if err := into(&rc.MAC, macExpected)(path, raw); err != nil {
				return err
			}
			return validMAC(path, rc.MAC)
		},
		"dns": func(path string, raw json.RawMessage) error {
			// CONVENTIONS.md calls them servers, searches and options here.
			return decodeObjectTolerant(path, raw, fields{
				"servers":  into(&rc.DNS.Nameservers, "an array of addresses"),
				"searches": into(&rc.DNS.Search, "an array of domains"),
				"options":  into(&rc.DNS.Options, "an array of texts"),
			}, func(string) bool { return true })
		},
	}, func(string) bool { return true })
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
	if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().Is4In6() {
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Prefix{}, Invalid(path, s, "it is "+ipExpected)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func validMAC(path, s string) error {
	mac, err := net.ParseMAC(s)
	if s != "" && (err != nil || len(mac) != 6 || mac[0]&1 != 0) {
		return Invalid(path, s, "it is "+macExpected+", not a multicast one")
	}
	return nil
}

// parseArgs reads args.cni; everything else under args belongs to others.
func (n *NetConf) parseArgs(path string, raw json.RawMessage) error {
	all := func(string) bool { return true }
	return decodeObjectTolerant(path, raw, fields{
		"cni": func(path string, raw json.RawMessage) error {
			return decodeObjectTolerant(path, raw, fields{
				"ips": func(path string, raw json.RawMessage) (err error) {
					n.Args.IPs, err = parseIPs(path, raw)
					return err
				},
				"mac": func(path string, raw json.RawMessage) error {
					if err := into(&n.Args.MAC, macExpected)(path, raw); err != nil {
						return err
					}
					return validMAC(path, n.Args.MAC)
				},
				"slirp4netns": into(&n.Args.Slirp4netns, "an array of texts \"option=value\""),
			}, all)
		},
	}, all)
}

// CNIArgs is what ambi reads of the environment variable CNI_ARGS.
type CNIArgs struct {
	IP  netip.Prefix // zero when absent
	MAC string
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
			return CNIArgs{}, invalidEnv("pair %q has no \"=\"; it is a list KEY=VALUE;KEY=VALUE", pair)
		}
		var err error
		switch {
		case key == "IP" && value != "":
			args.IP, err = parseIP("IP", value)
		case key == "MAC":
			args.MAC, err = value, validMAC("MAC", value)
		case key == "IgnoreUnknown":
			ignoreUnknown, err = parseLooseBool(value)
		case key == "IP", strings.HasPrefix(key, "K8S_"):
		default:
			unknown = pair
		}
		if err != nil {
			return CNIArgs{}, invalidEnv("%s=%s is not valid: %v", key, value, err)
		}
	}
	if unknown != "" && !ignoreUnknown {
		return CNIArgs{}, invalidEnv("%q is not known to ambi; add IgnoreUnknown=1 to have unknown keys passed over", unknown)
	}
	return args, nil
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
