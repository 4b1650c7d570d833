package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// port is a container's interface on the host and what it may send from.
type port struct {
	name string
	mac  net.HardwareAddr
	ips  []netip.Addr
}

// nfgenmsg is the header of nftables' messages: family, version 0, resource (linux/netfilter/nfnetlink.h).
func nfgenmsg(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

func nftKind(op uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | op }

// transaction is changes of the firewall that are done all or not at all.
type transaction struct{ batch }

func (x *transaction) change(t *nftables.Table, op, flags uint16, attributes func(*nlsock.Encoder)) {
	x.Add("nftables table "+t.Name, nftKind(op), flags, nfgenmsg(byte(t.Family), 0), attributes)
}

func (x *transaction) commit(s *nlsock.Socket) error {
	if x.Err() != nil || len(x.Requests) == 0 {
		return x.Err()
	}
	edge := func(kind uint16) nlsock.Request {
		return nlsock.Request{About: "nftables", Kind: kind, Flags: unix.NLM_F_REQUEST, Data: nfgenmsg(0, unix.NFNL_SUBSYS_NFTABLES)}
	}
	all := append([]nlsock.Request{edge(unix.NFNL_MSG_BATCH_BEGIN)}, x.Requests...)
	nlsock.Together(all) // and then comes the end
	_, err := s.Do(append(all, edge(unix.NFNL_MSG_BATCH_END)))
	return err
}

func (x *transaction) addTable(t *nftables.Table) {
	x.change(t, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, func(e *nlsock.Encoder) { e.String(unix.NFTA_TABLE_NAME, t.Name) })
}

func (x *transaction) deleteTable(t *nftables.Table) {
	x.change(t, unix.NFT_MSG_DELTABLE, 0, func(e *nlsock.Encoder) { e.String(unix.NFTA_TABLE_NAME, t.Name) })
}

// deleteUnused deletes one of the two tables; EBUSY when its set of networks or ports has an
// element (net/netfilter/nf_tables_api.c since Linux 4.17; older kernels delete it all the same).
func (x *transaction) deleteUnused(table *nftables.Table, t tables) {
	x.flushRules(table) // a rule holds the set that it looks into
	for i, s := range []*nftables.Set{t.networks, t.ports} {
		if s.Table != table {
			continue
		}
		x.addSet(s, uint32(i+1)) // somebody may have taken it away
		x.change(table, unix.NFT_MSG_DELSET, unix.NLM_F_NONREC, func(e *nlsock.Encoder) {
			e.String(unix.NFTA_SET_TABLE, table.Name)
			e.String(unix.NFTA_SET_NAME, s.Name)
		})
	}
	x.deleteTable(table)
}

func (x *transaction) addSet(s *nftables.Set, id uint32) {
	x.change(s.Table, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func(e *nlsock.Encoder) {
		e.ByteOrder = binary.BigEndian
		e.String(unix.NFTA_SET_TABLE, s.Table.Name)
		e.String(unix.NFTA_SET_NAME, s.Name)
		e.Uint32(unix.NFTA_SET_ID, id)
		e.Uint32(unix.NFTA_SET_FLAGS, 0)
		e.Uint32(unix.NFTA_SET_KEY_TYPE, s.KeyType.GetNFTMagic())
		e.Uint32(unix.NFTA_SET_KEY_LEN, s.KeyType.Bytes)
		if s.KeyByteOrder != nil {
			e.Bytes(unix.NFTA_SET_USERDATA, hostOrder())
		}
	})
}

// hostOrder tells nft, which would show names backwards, that a key has the host's
// byte order: type 0, length 4, 1.
func hostOrder() []byte { return binary.NativeEndian.AppendUint32([]byte{0, 4}, 1) }

func (x *transaction) addChain(c chain) {
	x.change(c.Table, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func(e *nlsock.Encoder) {
		e.String(unix.NFTA_CHAIN_TABLE, c.Table.Name)
		e.String(unix.NFTA_CHAIN_NAME, c.Name)
		if c.Type == "" {
			return
		}
		e.String(unix.NFTA_CHAIN_TYPE, string(c.Type))
		e.Nested(unix.NFTA_CHAIN_HOOK, func(e *nlsock.Encoder) error {
			e.ByteOrder = binary.BigEndian
			e.Uint32(unix.NFTA_HOOK_HOOKNUM, uint32(*c.Hooknum))
			e.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(*c.Priority))
			return nil
		})
	})
}

// flushRules removes all rules of a table.
func (x *transaction) flushRules(t *nftables.Table) {
	x.change(t, unix.NFT_MSG_DELRULE, 0, func(e *nlsock.Encoder) { e.String(unix.NFTA_RULE_TABLE, t.Name) })
}

func (x *transaction) addRule(c chain, rule []expr.Any) {
	x.change(c.Table, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(e *nlsock.Encoder) {
		e.String(unix.NFTA_RULE_TABLE, c.Table.Name)
		e.String(unix.NFTA_RULE_CHAIN, c.Name)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(e *nlsock.Encoder) error {
			for _, part := range rule {
				e.Do(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, func() ([]byte, error) { return expr.Marshal(byte(c.Table.Family), part) })
			}
			return nil
		})
	})
}

// elements is the attributes of a message about elements of a set.
func elementAttributes(s *nftables.Set, keys [][]byte) func(*nlsock.Encoder) {
	return func(e *nlsock.Encoder) {
		e.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		e.String(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		if keys == nil {
			return
		}
		e.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(e *nlsock.Encoder) error {
			for _, key := range keys {
				e.Nested(unix.NFTA_LIST_ELEM, func(e *nlsock.Encoder) error {
					e.Nested(unix.NFTA_SET_ELEM_KEY, func(e *nlsock.Encoder) error {
						e.Bytes(unix.NFTA_DATA_VALUE, key)
						return nil
					})
					return nil
				})
			}
			return nil
		})
	}
}

// changeElements adds or deletes elements, set by set. An attribute is at most 64 KiB
// long.
func (x *transaction) changeElements(elements []element, op, flags uint16) {
	const most = 1000
	var sets []*nftables.Set
	keys := map[*nftables.Set][][]byte{}
	for _, e := range elements {
		if keys[e.set] == nil {
			sets = append(sets, e.set)
		}
		keys[e.set] = append(keys[e.set], e.key)
	}
	for _, s := range sets {
		for some := range slices.Chunk(keys[s], most) {
			x.change(s.Table, op, flags, elementAttributes(s, some))
		}
	}
}

func (x *transaction) insert(elements []element) {
	x.changeElements(elements, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
}

func (x *transaction) remove(elements []element) {
	x.changeElements(elements, unix.NFT_MSG_DELSETELEM, 0)
}

// addElements puts elements into the sets. When something of the tables is missing,
// because this is the first network or a firewall reload took them away, they are made.
func (h Host) addElements(t tables, elements []element) error {
	var x transaction
	x.insert(elements)
	if err := x.commit(h.Filter); !errors.Is(err, unix.ENOENT) {
		return firewallError("setting rules of the built-in network", err)
	}
	return h.makeTables(t, elements)
}

// makeTables makes the tables as they should be, whatever of them is there: sets are
// kept with their elements, rules are replaced.
func (h Host) makeTables(t tables, elements []element) error {
	var x transaction
	x.addTable(t.inet)
	x.addTable(t.bridge)
	for i, s := range t.sets() {
		x.addSet(s, uint32(i+1))
	}
	chains := t.chains()
	for _, c := range chains {
		x.addChain(c)
	}
	x.flushRules(t.inet)
	x.flushRules(t.bridge)
	for _, c := range chains {
		for _, r := range c.rules {
			x.addRule(c, r)
		}
	}
	x.insert(elements)
	return firewallError("making the tables of the built-in network", x.commit(h.Filter))
}

// removeElements takes elements out of the sets. The kernel refuses a transaction
// that removes what is not there; then it is looked what is.
func (h Host) removeElements(elements []element) error {
	remove := func(elements []element) error {
		var x transaction
		x.remove(elements)
		return x.commit(h.Filter)
	}
	const tries = 20 // another process may remove some of them in between
	err := remove(elements)
	for i := 0; i < tries && errors.Is(err, unix.ENOENT); i++ {
		var there []element
		if there, err = h.present(elements); err == nil {
			err = remove(there)
		}
	}
	return firewallError("removing rules of the built-in network", err)
}

// present are those of the elements that their sets have.
func (h Host) present(elements []element) (there []element, err error) {
	for _, e := range elements {
		var b batch
		b.Add("set "+e.set.Name, nftKind(unix.NFT_MSG_GETSETELEM), 0, nfgenmsg(byte(e.set.Table.Family), 0), elementAttributes(e.set, [][]byte{e.key}))
		_, err := b.Send(h.Filter)
		switch {
		case err == nil:
			there = append(there, e)
		case !errors.Is(err, unix.ENOENT):
			return nil, firewallError("reading the rules of the built-in network", err)
		}
	}
	return there, nil
}

// keys are those of a set; none when it is not there.
func (h Host) keys(s *nftables.Set) (keys [][]byte, err error) {
	about := "reading set " + s.Name + " of nftables table " + tableName
	entries, err := h.Filter.Dump(about, nftKind(unix.NFT_MSG_GETSETELEM), nfgenmsg(byte(s.Table.Family), 0), elementAttributes(s, nil))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, firewallError("", err)
	}
	for _, data := range entries {
		some, err := keysIn(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", about, err)
		}
		keys = append(keys, some...)
	}
	return keys, nil
}

func keysIn(data []byte) (keys [][]byte, err error) {
	path := []uint16{unix.NFTA_SET_ELEM_LIST_ELEMENTS, unix.NFTA_LIST_ELEM, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE}
	err = walk(afterHeader(data), path, func(key []byte) { keys = append(keys, key) })
	return keys, err
}

// afterHeader are the attributes of a message of nftables.
func afterHeader(data []byte) []byte { return data[min(len(data), len(nfgenmsg(0, 0))):] }

// walk hands on every attribute that a path of nested ones leads to.
func walk(b []byte, path []uint16, found func([]byte)) error {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	for d.Next() {
		switch {
		case d.Type() != path[0]:
		case len(path) == 1:
			found(d.Bytes())
		default:
			if err := walk(d.Bytes(), path[1:], found); err != nil {
				return err
			}
		}
	}
	return d.Err()
}

// elementsOfPort are all that the sets have of an interface, found by its name alone.
func (h Host) elementsOfPort(t tables, name string) ([]element, error) {
	var found []element
	for _, s := range []*nftables.Set{t.ports, t.macs, t.ips, t.ips6} {
		keys, err := h.keys(s)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if bytes.HasPrefix(k, ifname(name)) {
				found = append(found, element{s, k})
			}
		}
	}
	return found, nil
}

// removeTables removes both when no network is left in them.
func (h Host) removeTables(t tables) error {
	for _, s := range []*nftables.Set{t.networks, t.ports} {
		if keys, err := h.keys(s); err != nil || len(keys) > 0 {
			return err
		}
	}
	var errs []error
	// Together, or each by itself where the other is gone.
	for _, some := range [][]*nftables.Table{{t.inet, t.bridge}, {t.inet}, {t.bridge}} {
		var x transaction
		for _, table := range some {
			x.deleteUnused(table, t)
		}
		err := x.commit(h.Filter)
		// EBUSY: an ADD with another folder, and so another lock, has just put something in.
		if errors.Is(err, unix.EBUSY) || err == nil && len(some) > 1 {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) {
			errs = append(errs, firewallError("removing the tables of the built-in network", err))
		}
	}
	return errors.Join(errs...)
}

// missingRules names what of the tables is not as it should be.
func (h Host) missingRules(t tables, elements []element) (missing []string, err error) {
	for _, c := range t.chains() {
		rules, err := h.rules(c.Table, c.Name)
		if err != nil {
			return nil, err
		}
		if !slices.EqualFunc(rules, c.rules, sameRule) {
			missing = append(missing, fmt.Sprintf("chain %s of nftables table %s is missing or was changed", c.Name, tableName))
		}
	}
	there, err := h.present(elements)
	if err != nil {
		return nil, err
	}
	for _, e := range elements {
		if !slices.ContainsFunc(there, func(o element) bool { return o.set == e.set && bytes.Equal(o.key, e.key) }) {
			missing = append(missing, fmt.Sprintf("an element of set %s of nftables table %s is missing", e.set.Name, tableName))
		}
	}
	return missing, nil
}

// part is an expression of a rule as the kernel shows it: its name, and the value that
// it compares with, if it does.
type part struct {
	name  string
	value []byte
}

// rawRules are those of a chain, as the kernel's messages have them; none when it is not there.
func (h Host) rawRules(t *nftables.Table, chain string) ([][]byte, error) {
	entries, err := h.Filter.Dump(aboutRules(t, chain), nftKind(unix.NFT_MSG_GETRULE), nfgenmsg(byte(t.Family), 0), func(e *nlsock.Encoder) {
		e.String(unix.NFTA_RULE_TABLE, t.Name)
		e.String(unix.NFTA_RULE_CHAIN, chain)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, firewallError("", err)
	}
	return entries, nil
}

func aboutRules(t *nftables.Table, chain string) string {
	return "reading chain " + chain + " of nftables table " + t.Name
}

// rules are the same with their expressions.
func (h Host) rules(t *nftables.Table, chain string) (rules [][]part, err error) {
	entries, err := h.rawRules(t, chain)
	if err != nil {
		return nil, err
	}
	for _, data := range entries {
		parts, err := partsIn(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", aboutRules(t, chain), err)
		}
		rules = append(rules, parts)
	}
	return rules, nil
}

func partsIn(data []byte) (parts []part, err error) {
	err = walk(afterHeader(data), []uint16{unix.NFTA_RULE_EXPRESSIONS, unix.NFTA_LIST_ELEM}, func(b []byte) {
		p := part{}
		_ = walk(b, []uint16{unix.NFTA_EXPR_NAME}, func(b []byte) { p.name = string(bytes.TrimRight(b, "\x00")) })
		if p.name == "cmp" {
			_ = walk(b, []uint16{unix.NFTA_EXPR_DATA, unix.NFTA_CMP_DATA, unix.NFTA_DATA_VALUE}, func(b []byte) { p.value = b })
		}
		parts = append(parts, p)
	})
	return parts, err
}

// sameRule compares the kinds of expressions, and what is compared with. Everything
// else comes back from the kernel in other forms.
func sameRule(have []part, want []expr.Any) bool {
	return slices.EqualFunc(have, want, func(p part, e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Cmp:
			return p.name == "cmp" && bytes.Equal(p.value, e.Data)
		case *expr.Meta:
			return p.name == "meta"
		case *expr.Payload:
			return p.name == "payload"
		case *expr.Lookup:
			return p.name == "lookup"
		case *expr.Verdict:
			return p.name == "immediate"
		case *expr.Ct:
			return p.name == "ct"
		case *expr.Bitwise:
			return p.name == "bitwise"
		case *expr.Masq:
			return p.name == "masq"
		}
		return false
	})
}

// hasNFTables is an error where nobody answers for nftables: EINVAL of nfnetlink.
func (h Host) hasNFTables() error {
	var b batch
	b.Add("asking the kernel for nftables", nftKind(unix.NFT_MSG_GETGEN), 0, nfgenmsg(0, 0), nil)
	_, err := b.Send(h.Filter)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", unix.EOPNOTSUPP, err)
	}
	return err
}

func firewallError(what string, err error) error {
	if what != "" && err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%v: the kernel has no nftables for this", err), "load its modules: modprobe nf_tables nft_masq nft_ct")
	case errors.Is(err, unix.EPERM):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%v", err), "it takes CAP_NET_ADMIN in the network namespace of the bridge")
	}
	return err
}
