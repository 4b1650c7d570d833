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

// iptBackend publishes with iptables and ip6tables, for hosts without nf_tables.
// A call runs iptables-save and iptables-restore once for each family, whatever
// the number of ports. There is nothing in iptables that refuses a rule because
// another one is there, so calls take turns under a lock.
type iptBackend struct {
	v4, v6 bool
	lock   *os.File // while it is held, see locked
}

var _ Backend = iptBackend{}

func openIPTables() (Backend, error) {
	_, err4 := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4))
	_, err6 := iptables.New(iptables.IPFamily(iptables.ProtocolIPv6))
	if err4 != nil && err6 != nil {
		return nil, conf.Errorf(conf.ErrNetwork, "iptables does not work (%v); install the package iptables", err4)
	}
	return iptBackend{v4: err4 == nil, v6: err6 == nil}, nil
}

func (iptBackend) Name() string { return string(conf.BackendIPTables) }

// families are those whose program is installed.
func (b iptBackend) families() []family {
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
func (b iptBackend) serves(fs []forward) error {
	for _, f := range fs {
		if !slices.Contains(b.families(), f.family()) {
			return conf.Errorf(conf.ErrNetwork, "publishing %s: %s is not installed; install the package iptables, or set portmap.backend to nftables", f, f.family().iptables())
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

func (b iptBackend) Free(ctx context.Context, p Published) ([]uint32, error) {
	if len(p.Ports) == 0 {
		return nil, nil
	}
	fs, err := p.forwards()
	if err != nil {
		return nil, err
	}
	reserved, err := hostSocketsFree(p, fs)
	if err := errors.Join(validOwner(p.Owner), b.serves(fs), err); err != nil {
		return nil, err
	}
	now, err := b.read(ctx)
	if err != nil {
		return nil, err
	}
	return reserved, refusedBy(now, plan{Published: p, forwards: fs})
}

func (b iptBackend) Add(ctx context.Context, p Published) error {
	if len(p.Ports) == 0 {
		return nil
	}
	fs, err := p.forwards()
	if err != nil {
		return err
	}
	_, err = hostSocketsFree(p, fs)
	if err := errors.Join(validOwner(p.Owner), b.serves(fs), err); err != nil {
		return err
	}
	hostIf, err := hostInterface(p)
	if err != nil {
		return err
	}
	pl := plan{p, fs, hostIf}
	var done []forward
	err = b.locked(ctx, func(b iptBackend) (err error) {
		done, err = b.publish(ctx, pl)
		return err
	})
	if err == nil {
		err = settle(p, fs, done, pl.hostIf)
	}
	// A conflict is found before anything is done, and what is there is then not
	// ours to remove.
	if err != nil && !isConflict(err) {
		err = errors.Join(err, b.Del(context.WithoutCancel(ctx), p))
	}
	return err
}

// publish is under the lock: every family is looked at before the first is
// changed. It returns the mappings that no sibling has.
func (b iptBackend) publish(ctx context.Context, pl plan) (done []forward, err error) {
	before, err := b.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := refusedBy(before, pl); err != nil {
		return nil, err
	}
	for _, r := range before {
		done = append(done, r.notOfSiblings(pl)...)
		if err := r.apply(ctx, r.publication(pl)); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// refusedBy is the error of what cannot be published beside what is there.
func refusedBy(there []ruleset, pl plan) error {
	for _, r := range there {
		if r.has(tag(pl.Owner)) {
			return alreadyPublished(pl.Owner)
		}
		if err := r.refuses(pl); err != nil {
			return err
		}
	}
	return nil
}

func (b iptBackend) read(ctx context.Context) ([]ruleset, error) {
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

func (b iptBackend) Check(ctx context.Context, p Published) error {
	if len(p.Ports) == 0 {
		return nil
	}
	fs, err := p.forwards()
	if err != nil {
		return err
	}
	if err := b.serves(fs); err != nil {
		return err
	}
	now, err := b.read(ctx)
	if err != nil {
		return err
	}
	hostIf, err := hostInterface(p)
	if err != nil {
		return err
	}
	pl := plan{p, fs, hostIf}
	var missing []string
	for _, r := range now {
		missing = append(missing, r.missing(pl)...)
	}
	if err := checkLocalnet(p, fs, pl.hostIf); err != nil {
		missing = append(missing, err.Error())
	}
	return notAsPublished(p.Owner, missing)
}

func (b iptBackend) Del(ctx context.Context, p Published) error {
	var gone []forward
	err := b.locked(ctx, func(b iptBackend) error {
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
	return errors.Join(err, forgetForwards(gone))
}

func (b iptBackend) Restore(ctx context.Context, all []Published) ([]conf.Key, error) {
	ready, errPlans := plans(all)
	if len(ready) == 0 {
		return nil, errPlans
	}
	var restored []conf.Key
	err := b.locked(ctx, func(b iptBackend) error {
		now, err := b.read(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, r := range now {
			owners, err := r.restore(ctx, ready)
			for _, k := range owners {
				if !slices.Contains(restored, k) {
					restored = append(restored, k)
				}
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return restored, errors.Join(errPlans, err, settleAll(ready, firstOfSiblings(ready)))
}

func (b iptBackend) Owners(ctx context.Context, network string) ([]conf.Key, error) {
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
