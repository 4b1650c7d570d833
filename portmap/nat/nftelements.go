package nat

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/ambi-cni/ambi/conf"
)

// placed is an element and the set it belongs in.
type placed struct {
	set string
	element
}

// elements are all that an owner has in the table: what Add inserts, Check
// compares and Del removes.
func elements(in intent) []placed {
	mark := tag(in.Owner)
	all := make([]placed, 0, 2*len(in.forwards)+5)
	all = append(all, placed{ownersMap, ownerElement(in)})
	for _, f := range in.forwards {
		all = append(all, f.element(mark), f.taken(mark))
	}
	if in.SNAT {
		all = append(all, masqueraded(in.Published, in.hostIf)...)
	}
	return all
}

func (f forward) element(mark string) placed {
	if f.wide() {
		return placed{f.family().portsMap(), element{portKey(f.slot), addrPortData(f.to), mark}}
	}
	return placed{f.family().hostedMap(), element{hostedKey(f.slot), addrPortData(f.to), mark}}
}

// masqueraded are the elements that have a container's awkward connections
// masqueraded.
func masqueraded(p Published, hostIf string) []placed {
	var all []placed
	mark := tag(p.Owner)
	for _, f := range families() {
		ip := p.target(f)
		if !ip.IsValid() {
			continue
		}
		b := ip.AsSlice()
		all = append(all, placed{f.snatSet(), element{key: append(b, b...), comment: mark}})
		if hostIf != "" {
			all = append(all, placed{f.hairpinSet(), element{key: append(ip.AsSlice(), ifnameBytes(hostIf)...), comment: mark}})
		}
	}
	return all
}

// ownerElement says in the kernel who the owner is and what it has, so that Del
// finds it all without being told.
func ownerElement(in intent) element {
	data := binary.NativeEndian.AppendUint32(nil, uint32(len(in.forwards)))
	for _, f := range families() {
		ip := in.target(f)
		if !ip.IsValid() {
			ip = f.unspecified()
		}
		data = append(data, ip.AsSlice()...)
	}
	link := ifnameBytes(cmp.Or(in.hostIf, noInterface))
	return element{ifnameBytes(tag(in.Owner)), append(data, link...), in.Owner.String()}
}

// owned is an owner's element, read back.
type owned struct {
	ports  int
	ips    []netip.Addr
	hostIf string
}

// The data of an owner's element: mark, IPv4 address, IPv6 address, link name.
const (
	endOfCount  = 4
	endOfIPv4   = endOfCount + 4
	endOfIPv6   = endOfIPv4 + 16
	endOfHostIf = endOfIPv6 + 16
)

func parseOwned(data []byte) (owned, error) {
	if len(data) != endOfHostIf {
		return owned{}, fmt.Errorf("nftables: map %s of table %s has data of %d bytes, expected %d", ownersMap, tableName, len(data), endOfHostIf)
	}
	o := owned{ports: int(binary.NativeEndian.Uint32(data)), hostIf: parseName(data[endOfIPv6:])}
	if o.hostIf == noInterface {
		o.hostIf = ""
	}
	for _, b := range [][]byte{data[endOfCount:endOfIPv4], data[endOfIPv4:endOfIPv6]} {
		if ip, ok := netip.AddrFromSlice(b); ok && !ip.IsUnspecified() {
			o.ips = append(o.ips, ip)
		}
	}
	return o, nil
}

// published is the part of an owner's element that names its masquerade elements.
func (o owned) published(owner conf.Key) Published { return Published{Owner: owner, IPs: o.ips} }

// inserts are the messages that make the elements, set by set.
func inserts(all []placed) []message {
	var own, shared []placed
	for _, e := range all {
		if e.isShared() {
			shared = append(shared, e)
		} else {
			own = append(own, e)
		}
	}
	return append(perSet(own, insert), perSet(shared, insertShared)...)
}

// removals are the messages that delete the elements, set by set.
func removals(all []placed) []message { return perSet(all, remove) }

func perSet(all []placed, make func(string, ...element) []message) []message {
	var order []string
	bySet := map[string][]element{}
	for _, e := range all {
		if bySet[e.set] == nil {
			order = append(order, e.set)
		}
		bySet[e.set] = append(bySet[e.set], e.element)
	}
	var msgs []message
	for _, set := range order {
		msgs = append(msgs, make(set, bySet[set]...)...)
	}
	return msgs
}

// contents are elements by set and key.
type contents map[string]map[string]element

func (c contents) of(e placed) (element, bool) {
	found, ok := c[e.set][string(e.key)]
	return found, ok
}

// lookUp asks the kernel for these elements, by key.
func (r reader) lookUp(all []placed) (contents, error) {
	keys := map[string][][]byte{}
	for _, e := range all {
		keys[e.set] = append(keys[e.set], e.key)
	}
	found := make(contents, len(keys))
	for set, k := range keys {
		es, err := r.get(set, k)
		if err != nil {
			return nil, fmt.Errorf("nftables: reading set %s: %w", set, err)
		}
		found[set] = es
	}
	return found, nil
}

// everything lists these sets whole.
func (r reader) everything(sets ...string) (contents, error) {
	found := make(contents, len(sets))
	for _, set := range sets {
		es := map[string]element{}
		err := r.list(set, func(e element) bool {
			es[string(e.key)] = e
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("nftables: listing set %s: %w", set, err)
		}
		found[set] = es
	}
	return found, nil
}

// portMaps are the maps that translate.
func portMaps() []string {
	var sets []string
	for _, f := range families() {
		sets = append(sets, f.portsMap(), f.hostedMap())
	}
	return sets
}

// parseForward is the inverse of forward.element.
func parseForward(e placed) forward {
	for _, f := range families() {
		if e.set == f.portsMap() || e.set == f.hostedMap() {
			return forward{parseSlot(f, e.set == f.hostedMap(), e.key), parseAddrPort(f, e.data)}
		}
	}
	return forward{}
}

// isPort says whether the element is in one of the maps that translate.
func (e placed) isPort() bool { return parseForward(e).port != 0 }
