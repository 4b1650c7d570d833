package nat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/coreos/go-iptables/iptables"

	"github.com/ambi-cni/ambi/conf"
)

// iptRules publishes with iptables and ip6tables, for hosts without nf_tables.
// A call runs iptables-save and iptables-restore once for each family, whatever
// the number of ports. There is nothing in iptables that refuses a rule because
// another one is there, so calls take turns under a lock.
type iptRules struct {
	v4, v6 bool
	lock   *os.File // while it is held, see locked
}

var _ rules = iptRules{}

func openIPTables() (Backend, error) {
	_, err4 := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4))
	_, err6 := iptables.New(iptables.IPFamily(iptables.ProtocolIPv6))
	if err4 != nil && err6 != nil {
		return nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "iptables does not work (%v)", err4), "install the package iptables")
	}
	return backend{iptRules{v4: err4 == nil, v6: err6 == nil}}, nil
}

func (iptRules) Name() string { return string(conf.BackendIPTables) }

// families are those whose program is installed.
func (b iptRules) families() []family {
	var fs []family
	if b.v4 {
		fs = append(fs, ipv4)
	}
	if b.v6 {
		fs = append(fs, ipv6)
	}
	return fs
}

// serves refuses mappings of a family whose program is not installed.
func (b iptRules) serves(fs []forward) error {
	for _, f := range fs {
		if !slices.Contains(b.families(), f.family()) {
			return conf.Mendf(conf.Errorf(conf.ErrNetwork, "publishing %s: %s is not installed", f, f.family().iptables()), "install the package iptables, or set portmap.backend to nftables")
		}
	}
	return nil
}

func (f family) iptables() string {
	if f == ipv4 {
		return "iptables"
	}
	return "ip6tables"
}

func (b iptRules) free(ctx context.Context, in intent) error {
	now, err := b.read(ctx)
	if err != nil {
		return err
	}
	return refusedBy(now, in)
}

func (b iptRules) publish(ctx context.Context, in intent) (done []forward, err error) {
	err = b.locked(ctx, func(b iptRules) (err error) {
		done, err = b.publishLocked(ctx, in)
		return err
	})
	// A conflict is found before anything is done, and what is there is then not
	// ours to remove.
	if err != nil && !isConflict(err) {
		gone, undone := b.unpublish(context.WithoutCancel(ctx), in.Published)
		err = errors.Join(err, undone, forgetForwards(gone))
	}
	return done, err
}

// publishLocked is under the lock: every family is looked at before the first is
// changed.
func (b iptRules) publishLocked(ctx context.Context, in intent) (done []forward, err error) {
	before, err := b.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := refusedBy(before, in); err != nil {
		return nil, err
	}
	for _, r := range before {
		done = append(done, r.notOfSiblings(in)...)
		if err := r.apply(ctx, r.publication(in)); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// refusedBy is the error of what cannot be published beside what is there.
func refusedBy(there []ruleset, in intent) error {
	for _, r := range there {
		if r.has(tag(in.Owner)) {
			return alreadyPublished(in.Owner)
		}
		if err := r.refuses(in); err != nil {
			return err
		}
	}
	return nil
}

func (b iptRules) read(ctx context.Context) ([]ruleset, error) {
	var all []ruleset
	for _, f := range b.families() {
		r, err := readRuleset(ctx, f)
		if err != nil {
			return nil, err
		}
		r.lock = b.lock
		all = append(all, r)
	}
	return all, nil
}

func (b iptRules) missing(ctx context.Context, in intent) (missing []string, err error) {
	now, err := b.read(ctx)
	for _, r := range now {
		missing = append(missing, r.missing(in)...)
	}
	return missing, err
}

func (b iptRules) unpublish(ctx context.Context, p Published) (gone []forward, err error) {
	err = b.locked(ctx, func(b iptRules) error {
		now, err := b.read(ctx)
		if err != nil {
			return err
		}
		allowAgain := func() {}
		if isLastOwner(now, p.Owner) {
			allowAgain = forbidLocalnets()
		}
		var errs []error
		for _, r := range now {
			gone = append(gone, r.forwards[tag(p.Owner)]...)
			gone = append(gone, r.unowned(p)...)
			errs = append(errs, r.apply(ctx, r.unpublication(tag(p.Owner))))
		}
		if err := errors.Join(errs...); err != nil {
			allowAgain()
			return err
		}
		return nil
	})
	return gone, err
}

func (b iptRules) restore(ctx context.Context, all []intent) (restored []conf.Key, done []forward, err error) {
	err = b.locked(ctx, func(b iptRules) error {
		now, err := b.read(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, r := range now {
			owners, err := r.restore(ctx, all)
			for _, k := range owners {
				if !slices.Contains(restored, k) {
					restored = append(restored, k)
				}
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return restored, firstOfSiblings(all), err
}

func (b iptRules) Owners(ctx context.Context, network string) ([]conf.Key, error) {
	now, err := b.read(ctx)
	if err != nil {
		return nil, err
	}
	var keys []conf.Key
	for _, r := range now {
		for _, name := range r.owners {
			k, ok := parseOwner(name)
			if ok && (network == "" || k.Network == network) && !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	return keys, nil
}

// iptError is an error of a program: its arguments and what it said.
func iptError(argv []string, output []byte, err error) error {
	return conf.Errorf(conf.ErrNetwork, "running %q: %s", argv, fmt.Sprintf("%v: %s", err, firstLines(output)))
}

// isLastOwner says whether the rule that keeps packets away from the host's loopback
// addresses goes with this owner.
func isLastOwner(all []ruleset, owner conf.Key) bool {
	for _, r := range all {
		if r.family == ipv4 {
			return r.has(tag(owner)) && !r.hasOthers(tag(owner))
		}
	}
	return false
}
