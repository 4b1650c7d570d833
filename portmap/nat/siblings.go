package nat

import (
	"slices"

	"github.com/ambi-cni/ambi/conf"
)

// Engines hand all port mappings of a container to each of its networks (Podman's
// --network web,db, containerd with several conflists). So the attachments of one
// container are siblings: a port that one of them publishes is no conflict for the
// other, which leaves it to the first. When that goes, Restore of the other
// publishes it.

// siblings says whether the named owner is another attachment of the container.
func siblings(k conf.Key, owner string) bool {
	other, ok := parseOwner(owner)
	return ok && other != k && other.ContainerID == k.ContainerID
}

// notOfSiblings are the mappings but those that a sibling of the owner publishes.
// The contents have to have the mappings' elements.
func (c contents) notOfSiblings(owner conf.Key, fs []forward, nameOf func(mark string) string) []forward {
	return slices.DeleteFunc(slices.Clone(fs), func(f forward) bool {
		e, ok := c.of(f.element(""))
		return ok && e.comment != tag(owner) && siblings(owner, nameOf(e.comment))
	})
}

// ownerNames is ownerName that asks once for each mark.
func (r reader) ownerNames() func(mark string) string {
	known := map[string]string{}
	return func(mark string) string {
		name, ok := known[mark]
		if !ok {
			name = r.ownerName(mark)
			known[mark] = name
		}
		return name
	}
}

// ownerName is the full name of the owner with this mark; empty when it is
// unknown.
func (c contents) ownerName(mark string) string {
	return c[ownersMap][string(ifnameBytes(mark))].comment
}

// notOfSiblings is the same of the iptables side, where a sibling's rules may be
// there twice and the first ones count.
func (r ruleset) notOfSiblings(pl plan) []forward {
	return slices.DeleteFunc(r.own(pl), func(f forward) bool {
		for t, fs := range r.forwards {
			if siblings(pl.Owner, r.owners[t]) && slices.ContainsFunc(fs, func(o forward) bool { return o.slot == f.slot }) {
				return true
			}
		}
		return false
	})
}

// firstOfSiblings are the mappings of all plans, each slot once.
func firstOfSiblings(ready []plan) []forward {
	seen := map[slot]bool{}
	var first []forward
	for _, p := range ready {
		for _, f := range p.forwards {
			if !seen[f.slot] {
				seen[f.slot] = true
				first = append(first, f)
			}
		}
	}
	return first
}
