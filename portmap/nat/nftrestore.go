package nat

import (
	"context"
	"errors"
	"slices"
)

// plan is a record resolved to what belongs in the kernel.
type plan struct {
	Published
	forwards []forward
	hostIf   string
}

// plans resolves records; one that cannot be is an error beside the others.
func plans(all []Published) ([]plan, error) {
	var ready []plan
	var errs []error
	for _, p := range all {
		if len(p.Ports) == 0 {
			continue
		}
		fs, err := p.forwards()
		if err == nil {
			err = validOwner(p.Owner)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ready = append(ready, plan{p, fs, hostInterface(p)})
	}
	return ready, errors.Join(errs...)
}

// settleAll is settle for every restored attachment: one look through connection
// tracking for all of them.
func settleAll(ready []plan) error {
	var errs []error
	var fs []forward
	for _, p := range ready {
		errs = append(errs, allowLocalnet(p.Published, p.forwards, p.hostIf))
		fs = append(fs, p.forwards...)
	}
	return errors.Join(append(errs, forgetElsewhere(fs))...)
}

func (nftBackend) Restore(ctx context.Context, all []Published) error {
	ready, errPlans := plans(all)
	if len(ready) == 0 {
		return errPlans
	}
	var conflicts error
	err := retry(ctx, func() (err error) {
		conflicts, err = nftRestore(ready)
		return err
	})
	if err != nil {
		err = nftError("restoring ports of", ready[0].Owner, err)
	}
	return errors.Join(errPlans, conflicts, err, settleAll(ready))
}

// nftRestore is one attempt: it reads everything, and inserts what is missing in
// one transaction against that generation. The first result names what others
// have meanwhile.
func nftRestore(ready []plan) (conflicts, err error) {
	r, err := newReader()
	if err != nil {
		return nil, err
	}
	defer r.close()
	generation, err := r.generation()
	if err != nil {
		return nil, err
	}
	there, err := r.everything(allSets()...)
	if err != nil {
		return nil, err
	}
	damaged, err := r.incompleteChains()
	if err != nil {
		return nil, err
	}
	stale, missing, conflicts := there.missing(ready)
	if len(damaged) == 0 && len(missing) == 0 {
		return conflicts, nil
	}
	layout, err := layoutMessages()
	if err != nil {
		return nil, err
	}
	return conflicts, commit(generation, slices.Concat(layout, removals(stale), inserts(missing)))
}

func allSets() []string {
	var names []string
	for _, d := range setDefs() {
		names = append(names, d.name)
	}
	return names
}

// missing compares the contents with the plans and adds to the contents what it
// decides to insert, so that two plans that want the same port are a conflict.
// Stale are elements to be replaced: ours with other data, and masquerade
// elements of an earlier owner of the address.
func (c contents) missing(ready []plan) (stale, missing []placed, conflicts error) {
	var errs []error
	hosted := c.hostedByPort()
	for _, p := range ready {
		if err := c.refuses(p, hosted); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range elements(p.Published, p.forwards, p.hostIf) {
			if c.differs(e) == "" {
				continue
			}
			if old, ok := c.of(e); ok {
				stale = append(stale, placed{e.set, old})
			}
			missing = append(missing, e)
			c.put(e)
			hosted.note(e)
		}
	}
	return stale, missing, errors.Join(errs...)
}

func (c contents) put(e placed) {
	if c[e.set] == nil {
		c[e.set] = map[string]element{}
	}
	c[e.set][string(e.key)] = e.element
}

// hosted are mappings of a single address by their port's element of the taken
// map; of several with one port any one.
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

// refuses is the error of the first port of a plan that another owner has.
func (c contents) refuses(p plan, h hosted) error {
	mark := tag(p.Owner)
	for _, f := range p.forwards {
		for _, e := range c.rivals(f, h) {
			if e.comment != mark {
				return inUse(parseForward(e).slot, c[ownersMap][string(ifnameBytes(e.comment))].comment)
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
