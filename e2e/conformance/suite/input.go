package suite

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

func inputNotJSON(l *lab) {
	a := l.newAttachment()
	for _, verb := range []string{"ADD", "DEL", "CHECK"} {
		for _, text := range []string{"{", "", "nonsense", "[]", `"text"`, `{"name":7}`, string(a.request(verb).bytes()) + "}"} {
			o := a.call(verb, stdin([]byte(text)))
			if o.code() != int(types.ErrDecodingFailure) {
				l.fail("standard input %q: expected code 6: %s", cut(text), o)
			}
		}
	}
}

func cut(text string) string {
	const most = 40
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

func badName(l *lab) {
	a := l.newAttachment()
	for _, verb := range []string{"ADD", "DEL", "CHECK"} {
		l.expect(a.call(verb, noKey("name")), types.ErrInvalidNetworkConfig)
		for _, name := range []string{"", "a/b", "../a", "-a", ".a", "a b"} {
			o := a.call(verb, key("name", name))
			if o.code() != int(types.ErrInvalidNetworkConfig) {
				l.fail("name %q: expected code 7: %s", name, o)
			}
		}
	}
}

func unknownVersion(l *lab) {
	a := l.newAttachment()
	for _, verb := range []string{"ADD", "DEL", "CHECK"} {
		l.expect(a.call(verb, key("cniVersion", "9.9.9")), types.ErrIncompatibleCNIVersion)
	}
	o := a.call("ADD", key("cniVersion", "nonsense"))
	l.expect(o, types.ErrIncompatibleCNIVersion, types.ErrDecodingFailure, types.ErrInvalidNetworkConfig)
}

func noVersion(l *lab) {
	if l.network.chained() {
		l.inapplicable("a configuration of 0.1.0 or 0.2.0 has no prevResult; 0.3.0 brought chaining")
	}
	a := l.newAttachment()
	o := a.call("ADD", noKey("cniVersion"))
	if !l.speaks("0.1.0") && !l.speaks("0.2.0") {
		l.expect(o, types.ErrIncompatibleCNIVersion)
		l.saw("it lists neither 0.1.0 nor 0.2.0, and says so")
		return
	}
	l.succeeds(o)
	l.oldResult(o.stdout)
	l.succeeds(a.call("DEL", noKey("cniVersion")))
}

// oldResult makes sure that a result has the form of 0.2.0.
func (l *lab) oldResult(raw json.RawMessage) {
	var r struct {
		IP4, IP6   *struct{ IP string }
		IPs        json.RawMessage
		Interfaces json.RawMessage
	}
	if err := json.Unmarshal(raw, &r); err != nil || r.IPs != nil || r.Interfaces != nil || (r.IP4 == nil && r.IP6 == nil) {
		l.fail("not a result of 0.2.0, which has ip4 or ip6: %s", short(raw))
	}
}

func unknownKeys(l *lab) {
	a := l.newAttachment()
	o := a.add(key("xUnknown", map[string]any{"colour": "mauve"}))
	if o.ok() {
		l.saw("it tolerates an unknown key")
		a.mustDel()
	} else {
		l.expect(o, types.ErrUnsupportedField)
		if !o.says("xUnknown") || !o.says("mauve") {
			l.fail("the message lacks the key or the value: %s", o)
		}
		l.saw("it is strict: %s", o)
	}
	known := l.newAttachment()
	edits := []edit{key("dns", map[string]any{"nameservers": []string{"192.0.2.53"}, "search": []string{"example.org"}})}
	if _, set := l.network.subject["ipMasq"]; !set {
		edits = append(edits, key("ipMasq", false))
	}
	o = known.add(edits...)
	if !o.ok() {
		l.fail("with the well-known keys dns and ipMasq: %s", o)
	}
	known.takeDown(edits...)
}

func wellKnownKeys(l *lab) {
	edits := []edit{
		key("args", map[string]any{"cni": map[string]any{"labels": []any{map[string]string{"key": "app", "value": "x"}}}, "org.example": 7}),
		key("capabilities", map[string]bool{"portMappings": true, "somethingElse": true}),
		key("runtimeConfig", map[string]any{"somethingElse": []int{1}, "aliases": []string{"db"}}),
		key("cni.dev/valid-attachments", []any{}),
		key("cni.dev/something-new", map[string]any{"a": 1}),
	}
	a := l.newAttachment()
	l.succeeds(a.add(edits...))
	if a.version >= "0.4.0" {
		l.succeeds(a.call("CHECK", edits...))
	}
	l.succeeds(a.call("DEL", edits...))
}

// neighbours are two addresses of the network of the first address of a result, in
// CIDR notation, that are free.
func (l *lab) neighbours(a *attachment) (one, two netip.Prefix) {
	ips := a.own()
	if len(ips) == 0 {
		l.inapplicable("the plugin's result has no address")
	}
	first, err := netip.ParsePrefix(ips[0].Address.String())
	l.must(err)
	var free []netip.Prefix
	for addr := first.Addr().Next(); len(free) < 40 && first.Contains(addr); addr = addr.Next() {
		free = append(free, netip.PrefixFrom(addr, first.Bits()))
	}
	if len(free) < 40 {
		l.inapplicable("the network of %s is too small to ask for an address of it", first)
	}
	return free[19], free[29]
}

func has(a *attachment, want netip.Prefix) bool {
	return slices.ContainsFunc(a.l.read(a.result).IPs, func(ip *ipConfig100) bool { return ip.Address.IP.String() == want.Addr().String() })
}

func ipsBeforeCNIArgs(l *lab) {
	l.needsInterface("it assigns no addresses")
	probe := l.attach()
	one, two := l.neighbours(probe)
	probe.takeDown()
	byEnv := l.newAttachment(withArgs("IgnoreUnknown=1;IP=" + one.Addr().String()))
	o := byEnv.add()
	if !o.ok() || !has(byEnv, one) {
		l.inapplicable("the plugin does not understand IP= of CNI_ARGS, so there is nothing to have precedence over (%s)", o)
	}
	byEnv.takeDown()
	args := map[string]any{"cni": map[string]any{"ips": []string{two.String()}}}
	both := l.newAttachment(withArgs("IgnoreUnknown=1;IP="+one.Addr().String()), withKey("args", args))
	l.succeeds(both.add())
	if has(both, one) || !has(both, two) {
		l.fail("asked for %s by CNI_ARGS and for %s by args.cni.ips, it gave %s", one, two, short(both.result))
	}
	l.saw("CNI_ARGS asked for %s, args.cni.ips for %s, which it gave", one, two)
}

func largeConfiguration(l *lab) {
	large := map[string]any{"cni": map[string]any{"labels": []any{map[string]string{"key": "large", "value": strings.Repeat("0123456789", 30000)}}}}
	a := l.newAttachment(withKey("args", large))
	l.succeeds(a.add())
	l.succeeds(a.call("DEL"))
	l.saw("a configuration of %d bytes", len(a.request("DEL").bytes()))
}

func spaceAndUnicode(l *lab) {
	a := l.newAttachment(withKey("args", map[string]any{"org.example": "größer als 網路 🕸"}))
	spaces := "\n\t \r\n\n"
	l.succeeds(a.add(stdin(append(a.request("ADD").bytes(), spaces...))))
	l.succeeds(a.call("DEL", stdin(append([]byte(spaces), append(a.request("DEL").bytes(), spaces...)...))))
}
