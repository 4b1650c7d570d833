package nat

import (
	"context"
	"errors"
	"slices"

	"github.com/ambi-cni/ambi/conf"
)

func (nftRules) restore(ctx context.Context, all []intent) ([]conf.Key, []forward, error) {
	d, err := nftRetry(ctx, "restoring ports of", all[0].Owner, func(r reader) (deficit, error) { return r.restore(all) })
	if err != nil {
		d.owners = nil
	}
	return d.owners, d.done, errors.Join(d.conflicts, err)
}

// restore is one attempt: it reads everything, and inserts what is missing in
// one transaction against that generation.
func (r reader) restore(all []intent) (deficit, error) {
	generation, err := r.generation()
	if err != nil {
		return deficit{}, err
	}
	there, err := r.everything(allSets()...)
	if err != nil {
		return deficit{}, err
	}
	damaged, err := r.incompleteChains()
	if err != nil {
		return deficit{}, err
	}
	d := there.missing(all)
	if len(damaged) == 0 && len(d.missing) == 0 {
		return d, nil
	}
	if len(damaged) > 0 {
		d.owners = d.sound // no port of anybody's worked without the chains
	}
	layout, err := layoutMessages()
	if err != nil {
		return d, err
	}
	return d, commit(generation, slices.Concat(layout, removals(d.stale), inserts(d.missing)))
}

func allSets() []string {
	var names []string
	for _, d := range setDefs() {
		names = append(names, d.name)
	}
	return names
}

// deficit is what the kernel lacks of the intents.
type deficit struct {
	// stale are elements to be replaced: ours with other data, and masquerade
	// elements of an earlier owner of the address.
	stale     []placed
	missing   []placed
	owners    []conf.Key // of what is missing
	sound     []conf.Key // without a conflict
	done      []forward  // those of the sound, each slot once
	conflicts error      // names what others have meanwhile
}

// missing compares the contents with the intents and adds to the contents what it
// decides to insert, so that two that want the same port are a conflict.
func (c contents) missing(all []intent) deficit {
	var d deficit
	var errs []error
	hosted := c.hostedByPort()
	for _, in := range all {
		in.forwards = c.notOfSiblings(in, c.ownerName)
		if err := c.refuses(in, hosted); err != nil {
			errs = append(errs, err)
			continue
		}
		before := len(d.missing)
		for _, e := range elements(in) {
			if c.differs(e) == "" {
				continue
			}
			if old, ok := c.of(e); ok {
				d.stale = append(d.stale, placed{e.set, old})
			}
			d.missing = append(d.missing, e)
			c.put(e)
			hosted.note(e)
		}
		d.sound, d.done = append(d.sound, in.Owner), append(d.done, in.forwards...)
		if len(d.missing) > before {
			d.owners = append(d.owners, in.Owner)
		}
	}
	d.conflicts = errors.Join(errs...)
	return d
}

func (c contents) put(e placed) {
	if c[e.set] == nil {
		c[e.set] = map[string]element{}
	}
	c[e.set][string(e.key)] = e.element
}

// hosted are the published ports of single host addresses. A wide mapping, which is of
// every address, cannot be beside one of them, so they are found by what both have in
// common: family, protocol and port, which is the id of their element in the taken map.
// When several addresses have the same port, whichever came last stands for all: an
// error names only one anyway.
type hosted map[string]placed

func (h hosted) note(e placed) {
	if f := parseForward(e); e.isPort() && !f.wide() {
		h[f.taken("").id()] = e
	}
}

func (c contents) hostedByPort() hosted {
	h := hosted{}
	for _, fam := range families() {
		for _, e := range c[fam.hostedMap()] {
			h.note(placed{fam.hostedMap(), e})
		}
	}
	return h
}

// refuses is the error of the first port that another owner has.
func (c contents) refuses(in intent, h hosted) error {
	mark := tag(in.Owner)
	for _, f := range in.forwards {
		for _, e := range c.rivals(f, h) {
			if e.comment != mark {
				return inUse(parseForward(e).slot, c.ownerName(e.comment))
			}
		}
	}
	return nil
}

// rivals are the elements that a mapping cannot be beside.
func (c contents) rivals(f forward, h hosted) []placed {
	wide := f
	wide.host = f.family().unspecified()
	var there []placed
	for _, same := range []placed{f.element(""), wide.element("")} {
		if e, ok := c.of(same); ok {
			there = append(there, placed{same.set, e})
		}
	}
	if e, ok := h[f.taken("").id()]; ok && f.wide() {
		there = append(there, e)
	}
	return there
}
