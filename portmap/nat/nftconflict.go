package nat

import "slices"

// conflict finds the first port that cannot be published and names its owner. When
// there is none it returns the mappings that no sibling publishes.
func (r reader) conflict(in intent) ([]forward, error) {
	self := placed{ownersMap, element{key: ifnameBytes(tag(in.Owner))}}
	rivals := []placed{self}
	for _, f := range in.forwards {
		wide := f
		wide.host = f.family().unspecified()
		rivals = append(rivals, f.element(""), wide.element(""), f.taken(""))
	}
	there, err := r.lookUp(rivals)
	if err != nil {
		return nil, err
	}
	if _, ok := there.of(self); ok {
		return nil, alreadyPublished(in.Owner)
	}
	left := there.notOfSiblings(in, r.ownerNames())
	for _, f := range left {
		if rival, ok := r.rival(there, f); ok {
			return nil, inUse(rival.slot, r.ownerName(rival.mark))
		}
	}
	return left, nil
}

// rival is a published port that excludes another one.
type rival struct {
	slot
	mark string
}

func (r reader) rival(there contents, f forward) (rival, bool) {
	wide := f
	wide.host = f.family().unspecified()
	for _, same := range []forward{f, wide} {
		if e, ok := there.of(same.element("")); ok {
			return rival{same.slot, e.comment}, true
		}
	}
	if _, taken := there.of(f.taken("")); taken && f.wide() {
		return r.hostedRival(f), true
	}
	return rival{}, false
}

// hostedRival finds a mapping of a single address that has this port. It looks
// through all of them, which only an error costs.
func (r reader) hostedRival(f forward) rival {
	found := rival{slot: f.slot}
	set := f.family().hostedMap()
	_ = r.list(set, func(e element) bool {
		s := parseForward(placed{set, e}).slot
		if s.proto == f.proto && s.port == f.port {
			found = rival{s, e.comment}
		}
		return true
	})
	return found
}

// ownerName is the full name of the owner with this mark; empty when it is
// unknown.
func (r reader) ownerName(mark string) string {
	es, err := r.get(ownersMap, [][]byte{ifnameBytes(mark)})
	if err != nil {
		return ""
	}
	return es[string(ifnameBytes(mark))].comment
}

// notOfSiblings are the mappings but those that a sibling of the owner publishes.
// The contents have to have the mappings' elements.
func (c contents) notOfSiblings(in intent, nameOf func(mark string) string) []forward {
	return slices.DeleteFunc(slices.Clone(in.forwards), func(f forward) bool {
		e, ok := c.of(f.element(""))
		return ok && e.comment != tag(in.Owner) && siblings(in.Owner, nameOf(e.comment))
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
