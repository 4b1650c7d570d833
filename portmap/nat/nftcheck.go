package nat

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

func (nftRules) missing(ctx context.Context, in intent) ([]string, error) {
	return nftRetry(ctx, "checking ports of", in.Owner, func(r reader) ([]string, error) { return r.missing(in) })
}

// missing is one attempt. It compares the kernel with what publish would make.
func (r reader) missing(in intent) ([]string, error) {
	there, err := r.hasTable()
	if err != nil {
		return nil, err
	}
	if !there {
		return []string{"nftables: table inet " + tableName + " is missing"}, nil
	}
	missing, err := r.incompleteChains()
	if err != nil {
		return nil, err
	}
	all := elements(in)
	found, err := r.lookUp(all)
	if err != nil {
		return nil, err
	}
	if left := found.notOfSiblings(in, r.ownerNames()); len(left) < len(in.forwards) {
		in.forwards = left
		all = elements(in)
	}
	for _, e := range all {
		if text := found.differs(e); text != "" {
			missing = append(missing, text)
		}
	}
	return missing, nil
}

// differs says what is wrong with an element; empty when it is as it should be.
func (c contents) differs(e placed) string {
	found, ok := c.of(e)
	what := e.describe()
	switch {
	case !ok:
		return what + " is missing"
	case found.comment != e.comment:
		return what + " belongs to another attachment"
	case !bytes.Equal(found.data, e.data) && e.isPort():
		return what + " goes to " + parseForward(placed{e.set, found}).to.String()
	case !bytes.Equal(found.data, e.data):
		return what + " is different"
	}
	return ""
}

func (e placed) describe() string {
	if e.isPort() {
		return "host port " + parseForward(e).String()
	}
	if e.set == ownersMap {
		return "the owner's entry in map " + ownersMap
	}
	return "an entry of the container in " + e.set
}

// incompleteChains names the chains of the layout that are missing or have not
// the number of rules they should.
func (r reader) incompleteChains() ([]string, error) {
	rules, err := r.rulesPerChain()
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, c := range chainDefs() {
		there, err := r.hasChain(c.name)
		if err != nil {
			return nil, err
		}
		if !there {
			missing = append(missing, fmt.Sprintf("nftables: chain %s of table %s is missing", c.name, tableName))
		} else if rules[c.name] != len(c.rules) {
			missing = append(missing, fmt.Sprintf("nftables: chain %s of table %s has %d of %d rules", c.name, tableName, rules[c.name], len(c.rules)))
		}
	}
	return missing, nil
}

func (r reader) hasChain(name string) (bool, error) {
	return r.has(unix.NFT_MSG_GETCHAIN, attrs(nil).text(unix.NFTA_CHAIN_TABLE, tableName).text(unix.NFTA_CHAIN_NAME, name))
}

// rulesPerChain counts a rule once. The kernel goes on with the next part of a list at a
// number, and lists the same rules again when somebody has put others before them into
// a transaction meanwhile; it says that a list was interrupted only after the commit.
func (r reader) rulesPerChain() (map[string]int, error) {
	rules, listed := map[string]int{}, map[string]bool{}
	m := nftMessage(unix.NFT_MSG_GETRULE, 0, attrs(nil).text(unix.NFTA_RULE_TABLE, tableName))
	err := r.dump(m, func(data []byte) bool {
		data = data[min(headerSize, len(data)):]
		// Older kernels list the rules of all tables.
		handle := string(findAttr(data, unix.NFTA_RULE_HANDLE))
		if parseName(findAttr(data, unix.NFTA_RULE_TABLE)) == tableName && !listed[handle] {
			listed[handle] = true
			rules[parseName(findAttr(data, unix.NFTA_RULE_CHAIN))]++
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return rules, err
}
