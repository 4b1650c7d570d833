package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// The keys that say what ambi has installed. Runtimes and plugins pass over what they do
// not know.
const (
	// listMark is of a whole conflist.
	listMark = "ambi/installed"
	// entryMark is of ambi's entry in a conflist of others: what it stands in the place of,
	// or null.
	entryMark = "ambi/replaces"
)

// list is a conflist that is edited without changing a byte elsewhere: numbers keep
// their digits, keys their order.
type list struct {
	text       []byte
	start, end int // where in the text the value of plugins is
	name       string
	version    string
	mark       bool
	plugins    []json.RawMessage
}

var (
	errNoObject  = errors.New("it is not one JSON object")
	errNoPlugins = errors.New("it has no plugins")
)

// parseList reads a conflist as far as it concerns us. file is its name, for messages.
func parseList(file string, text []byte) (*list, error) {
	l := &list{text: text, end: -1}
	d := json.NewDecoder(bytes.NewReader(text))
	bad := func(err error) error {
		return conf.Mendf(conf.Errorf(types.ErrDecodingFailure, "conflist %s is no network configuration list: %v", file, err), "it is a JSON object with cniVersion, name and plugins; see \"ambi doctor\"")
	}
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, bad(errNoObject)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, bad(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, bad(err)
		}
		if err := l.take(fmt.Sprint(key), value, int(d.InputOffset())); err != nil {
			return nil, bad(err)
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, bad(err)
	}
	if rest := bytes.TrimSpace(text[d.InputOffset():]); len(rest) > 0 {
		return nil, bad(errNoObject)
	}
	if l.end < 0 || len(l.plugins) == 0 {
		return nil, bad(errNoPlugins)
	}
	return l, nil
}

// take is one member of the list, whose value ends at an offset of the text.
func (l *list) take(key string, value json.RawMessage, end int) error {
	switch strings.ToLower(key) { // as encoding/json, and so libcni, reads it
	case "plugins":
		l.start, l.end = end-len(value), end
		l.plugins = nil
		return json.Unmarshal(value, &l.plugins)
	case "name":
		return json.Unmarshal(value, &l.name)
	case "cniversion":
		return json.Unmarshal(value, &l.version)
	case listMark:
		l.mark = true
	}
	return nil
}

// understood says whether ambi takes its entries in the list.
func (l *list) understood(file string) error {
	ours := false
	for _, raw := range l.plugins {
		if typeOf(raw) != name {
			continue
		}
		ours = true
		whole := withMember(withMember(raw, "name", l.name), "cniVersion", l.version)
		c, err := conf.Parse(whole)
		if err == nil {
			err = c.Misspelt()
		}
		if err != nil {
			return fmt.Errorf("conflist %s, entry of ambi: %w", file, err)
		}
	}
	if !ours {
		return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "conflist %s has no plugin ambi", file), "add {\"type\": \"ambi\"}, or have ambi added to the node's own with --chain")
	}
	return nil
}

// marked is the list as one that we installed.
func (l *list) marked() []byte {
	if l.mark {
		return l.text
	}
	return withMember(l.text, listMark, true)
}

func (l *list) isMarked() bool { return l.mark }

// has says whether a plugin is among those of the list.
func (l *list) has(plugin string) bool {
	return slices.ContainsFunc(l.plugins, func(raw json.RawMessage) bool { return typeOf(raw) == plugin })
}

// hasOurs says whether an entry of the list is one that we added.
func (l *list) hasOurs() bool {
	return slices.ContainsFunc(l.plugins, func(raw json.RawMessage) bool { return isOurs(raw) })
}

func isOurs(raw json.RawMessage) bool {
	var entry map[string]json.RawMessage
	if json.Unmarshal(raw, &entry) != nil {
		return false
	}
	_, marked := entry[entryMark]
	return marked && typeOf(raw) == name
}

// withAmbi is the list with ambi for the ports: in the place of portmap, whose keys snat
// and backend it has, too; else at the end.
func (l *list) withAmbi() []byte {
	plugins := slices.Clone(l.plugins)
	at := slices.IndexFunc(plugins, func(raw json.RawMessage) bool { return typeOf(raw) == "portmap" })
	if at < 0 {
		return l.withPlugins(append(plugins, json.RawMessage(`{"`+entryMark+`": null, "type": "ambi", "capabilities": {"portMappings": true}}`)))
	}
	portmap := plugins[at]
	var keys struct {
		SNAT    json.RawMessage `json:"snat,omitempty"`
		Backend json.RawMessage `json:"backend,omitempty"`
	}
	_ = json.Unmarshal(portmap, &keys) // an object: its type was read
	carried, _ := json.Marshal(keys)   // of what was JSON
	entry := withMember(carried, "capabilities", map[string]bool{"portMappings": true})
	plugins[at] = withMember(withMember(entry, "type", name), entryMark, portmap)
	return l.withPlugins(plugins)
}

// without is the list without what we added.
func (l *list) without() []byte {
	var plugins []json.RawMessage
	for _, raw := range l.plugins {
		if !isOurs(raw) {
			plugins = append(plugins, raw)
			continue
		}
		var entry map[string]json.RawMessage
		_ = json.Unmarshal(raw, &entry) // it is ours
		if replaced := entry[entryMark]; string(replaced) != "null" {
			plugins = append(plugins, replaced)
		}
	}
	return l.withPlugins(plugins)
}

func (l *list) withPlugins(plugins []json.RawMessage) []byte {
	const between = ",\n    "
	value := slices.Concat([]byte("[\n    "), bytes.Join(asBytes(plugins), []byte(between)), []byte("\n  ]"))
	return slices.Concat(l.text[:l.start], value, l.text[l.end:])
}

func asBytes(raw []json.RawMessage) (all [][]byte) {
	for _, r := range raw {
		all = append(all, r)
	}
	return all
}

// withMember is an object with one more member, before the others. What is JSON already
// stays as it is written.
func withMember(object []byte, key string, value any) []byte {
	text, given := value.(json.RawMessage)
	if !given {
		text, _ = json.Marshal(value) // a text, a boolean, or a map of them
	}
	open := bytes.IndexByte(object, '{') + 1
	separator := ", "
	if rest := bytes.TrimSpace(object[open:]); len(rest) > 0 && rest[0] == '}' {
		separator = ""
	}
	return slices.Concat(object[:open], []byte(fmt.Sprintf("%q: %s%s", key, text, separator)), object[open:])
}

// typeOf is the type of a plugin's configuration; empty when it has none.
func typeOf(raw json.RawMessage) string {
	var plugin struct{ Type string }
	if json.Unmarshal(raw, &plugin) != nil {
		return ""
	}
	return plugin.Type
}

func lookOf(st fs.FileInfo) look {
	l := look{st.Mode().Perm(), -1, -1}
	if own, ok := st.Sys().(*syscall.Stat_t); ok {
		l.uid, l.gid = int(own.Uid), int(own.Gid)
	}
	return l
}

// WithPodCIDR is a conflist whose built-in networks of ambi have these subnets, at most
// one of each family, where they say none themselves. file is its name, for messages.
func WithPodCIDR(file string, text []byte, cidrs []netip.Prefix) ([]byte, error) {
	l, err := parseList(file, text)
	if err != nil {
		return nil, err
	}
	plugins, taken := slices.Clone(l.plugins), false
	for i, raw := range plugins {
		if typeOf(raw) != name {
			continue
		}
		var entry, bridge map[string]json.RawMessage
		_ = json.Unmarshal(raw, &entry) // an object: its type was read
		if entry["delegates"] != nil || entry["delegatesFrom"] != nil {
			continue
		}
		taken = true
		if given := entry["bridge"]; given != nil && json.Unmarshal(given, &bridge) != nil {
			continue // ambi says what is wrong with it
		}
		entry["bridge"], _ = json.Marshal(withSubnets(bridge, cidrs)) // of what was JSON
		plugins[i], _ = json.Marshal(entry)
	}
	if !taken {
		return nil, conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "conflist %s has no built-in network of ambi, which could have the pod CIDR", file), "leave the pod CIDR away, and give it to the plugin that gives the addresses")
	}
	return l.withPlugins(plugins), nil
}

// withSubnets is the key bridge with these subnets, where it says none.
func withSubnets(bridge map[string]json.RawMessage, cidrs []netip.Prefix) map[string]json.RawMessage {
	if bridge == nil {
		bridge = map[string]json.RawMessage{}
	}
	for _, cidr := range cidrs {
		key := "subnet"
		if cidr.Addr().Is6() {
			key = "subnet6"
		}
		if bridge[key] == nil {
			bridge[key], _ = json.Marshal(cidr.String()) // a text
		}
	}
	return bridge
}

// ParsePodCIDR reads one subnet of each family at most, with commas or spaces between, or
// as kubectl prints spec.podCIDRs, which is a list of JSON.
func ParsePodCIDR(text string) (cidrs []netip.Prefix, err error) {
	seen := map[bool]bool{}
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(`,[]"`, r) || unicode.IsSpace(r) }) {
		cidr, err := netip.ParsePrefix(word)
		if err != nil || seen[cidr.Addr().Is4()] {
			return nil, badPodCIDR(text)
		}
		seen[cidr.Addr().Is4()] = true
		cidrs = append(cidrs, cidr.Masked())
	}
	if len(cidrs) == 0 {
		return nil, badPodCIDR(text)
	}
	return cidrs, nil
}

func badPodCIDR(text string) error {
	return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "pod CIDR %q: it is a subnet, or one of each family", text), "give the node's spec.podCIDRs, such as 10.244.1.0/24 or 10.244.1.0/24,fd00:1::/64")
}
