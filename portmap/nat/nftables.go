package nat

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// nftRules publishes over netlink; it starts no process. Every call opens its
// own socket in the network namespace of the calling thread.
//
// Calls of several processes meet in the kernel only. A transaction that must
// agree with what was read before, such as the one that removes the table because
// no other owner is there, carries the generation of the ruleset and is repeated
// when the kernel says that it has changed.
type nftRules struct{}

var _ rules = nftRules{}

func openNFTables() (Backend, error) {
	if err := askNFTables(); err != nil {
		return nil, noAnswer(err)
	}
	return backend{nftRules{}}, nil
}

func noAnswer(err error) error {
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "nftables does not answer (%v)", err), "it takes CAP_NET_ADMIN and the kernel module nf_tables (modprobe nf_tables)")
}

// askNFTables is not nil when nftables does not answer.
func askNFTables() error {
	r, err := newReader()
	if err != nil {
		return err
	}
	defer r.close()
	_, err = r.generation()
	return err
}

// notThere says that the kernel has no nftables, which will be so the next time, too:
// no netlink protocol (socket(2)), or nobody in it for nf_tables (EINVAL of
// nfnetlink).
func notThere(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

func (nftRules) Name() string { return string(conf.BackendNFTables) }

// serves: tables of the family inet are for both.
func (nftRules) serves([]forward) error { return nil }

func (nftRules) free(ctx context.Context, in intent) error {
	_, err := nftRetry(ctx, "looking for ports of", in.Owner, func(r reader) (any, error) { return nil, r.free(in) })
	return err
}

// nftRetry repeats an attempt (see retry), each with a reader of its own, and says what
// was being done when none succeeds.
func nftRetry[T any](ctx context.Context, doing string, owner conf.Key, attempt func(reader) (T, error)) (done T, err error) {
	err = retry(ctx, func() error {
		r, err := newReader()
		if err != nil {
			return err
		}
		defer r.close()
		done, err = attempt(r)
		return err
	})
	if err != nil {
		return done, nftError(doing, owner, err)
	}
	return done, nil
}

// free is one attempt. The taken maps have something of every published port,
// so one element for each port tells that nothing is in the way; only otherwise
// it reads what is.
func (r reader) free(in intent) error {
	// Most often nothing is published yet, and a question for each port takes longer
	// than publishing them all.
	if there, err := r.hasTable(); err != nil || !there {
		return err
	}
	asked := []placed{{ownersMap, element{key: ifnameBytes(tag(in.Owner))}}}
	for _, f := range in.forwards {
		asked = append(asked, f.taken(""))
	}
	there, err := r.lookUp(asked)
	if err != nil {
		return err
	}
	for _, e := range asked {
		if _, ok := there.of(e); ok {
			_, err := r.conflict(in)
			return err
		}
	}
	return nil
}

func (nftRules) publish(ctx context.Context, in intent) ([]forward, error) {
	return nftRetry(ctx, "publishing ports of", in.Owner, func(r reader) ([]forward, error) { return r.publish(in) })
}

// publish is one attempt. It first inserts without having read anything, which
// the kernel refuses when something is there; only then it reads what. It returns
// the mappings that it published.
func (r reader) publish(in intent) ([]forward, error) {
	there, err := r.hasTable()
	if err != nil {
		return nil, err
	}
	err = commitInTable(there, 0, inserts(elements(in)))
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		return r.publishCarefully(in)
	}
	return in.forwards, err
}

// commitInTable commits messages that need our table. It makes the table when it
// is not there, and mends it when something of it is missing: the last other
// owner may have taken it away in between, or somebody flushed a part.
func commitInTable(there bool, generation uint32, msgs []message) error {
	if there {
		if err := commit(generation, msgs); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	layout, err := layoutMessages()
	if err != nil {
		return err
	}
	return commit(generation, append(layout, msgs...))
}

// publishCarefully reads first: ports of others are a conflict, those of siblings
// are left to them, masquerade elements of others are left over from an attachment
// that had our address before us, and are taken over.
func (r reader) publishCarefully(in intent) ([]forward, error) {
	generation, err := r.generation()
	if err != nil {
		return nil, err
	}
	if in.forwards, err = r.conflict(in); err != nil {
		return nil, err
	}
	all := elements(in)
	stale, err := r.leftOver(all)
	if err != nil {
		return nil, err
	}
	return in.forwards, commitInTable(true, generation, append(removals(stale), inserts(all)...))
}

func (r reader) leftOver(all []placed) ([]placed, error) {
	var candidates, stale []placed
	for _, e := range all {
		if e.set == ipv4.snatSet() || e.set == ipv6.snatSet() || e.set == ipv4.hairpinSet() || e.set == ipv6.hairpinSet() {
			candidates = append(candidates, e)
		}
	}
	there, err := r.lookUp(candidates)
	if err != nil {
		return nil, err
	}
	for _, e := range candidates {
		if _, ok := there.of(e); ok {
			stale = append(stale, e)
		}
	}
	return stale, nil
}

func (nftRules) unpublish(ctx context.Context, p Published) ([]forward, error) {
	return nftRetry(ctx, "unpublishing ports of", p.Owner, func(r reader) ([]forward, error) { return r.unpublish(p) })
}

// unpublish is one attempt. It returns the mappings whose connections are to be
// forgotten: those it removed, and those of p that nobody has.
func (r reader) unpublish(p Published) ([]forward, error) {
	generation, err := r.generation()
	if err != nil {
		return nil, err
	}
	mine, unowned, err := r.ownedBy(p)
	if err != nil || len(mine) == 0 {
		return unowned, err
	}
	var fs []forward
	for _, e := range mine {
		if e.isPort() {
			fs = append(fs, parseForward(e))
		}
	}
	msgs, last, err := r.removal(p.Owner, mine, fs)
	if err != nil {
		return nil, err
	}
	// Before the rule that makes it harmless goes. An Add that comes meanwhile changes
	// the generation.
	allowAgain := forbidLocalnet(last)
	if err := commit(generation, msgs); err != nil {
		allowAgain()
		return nil, err
	}
	return append(fs, unowned...), nil
}

// removal removes the elements, or the whole table when no other owner is
// there, so that nothing is left behind. last is the interface of the host when no
// other owner has the same.
func (r reader) removal(owner conf.Key, mine []placed, fs []forward) (msgs []message, last string, err error) {
	hostIf, err := hostIfOf(mine)
	if err != nil {
		return nil, "", err
	}
	others, sharing, err := ownersBut(owner, hostIf)
	if err != nil {
		return nil, "", err
	}
	if !sharing {
		last = hostIf
	}
	if !others {
		return []message{nftMessage(unix.NFT_MSG_DELTABLE, 0, attrs(nil).text(unix.NFTA_TABLE_NAME, tableName))}, last, nil
	}
	taken, err := r.released(fs, tag(owner))
	if err != nil {
		return nil, "", err
	}
	return removals(append(mine, taken...)), last, nil
}

// ownersBut says whether there is another owner, and whether one has the same
// interface of the host. It reads no more of the list of owners than that takes. It
// has its own socket, since a list that is not read to its end leaves answers behind.
func ownersBut(owner conf.Key, hostIf string) (others, sharing bool, err error) {
	r, err := newReader()
	if err != nil {
		return false, false, err
	}
	defer r.close()
	own, shareable := string(ifnameBytes(tag(owner))), localnetIsOurs(hostIf)
	err = r.list(ownersMap, func(e element) bool {
		if string(e.key) == own {
			return true
		}
		others = true
		o, err := parseOwned(e.data)
		sharing = sharing || err != nil || o.hostIf == hostIf
		return shareable && !sharing
	})
	return others, sharing || !shareable, err
}

// hostIfOf is the interface that an owner's own element among these tells.
func hostIfOf(mine []placed) (string, error) {
	for _, e := range mine {
		if e.set == ownersMap {
			o, err := parseOwned(e.data)
			return o.hostIf, err
		}
	}
	return "", nil
}

// ownedBy finds what the owner has in the kernel: by key when p tells it all, else
// by looking through the maps for its mark. The second result is what of p
// nobody has.
func (r reader) ownedBy(p Published) (mine []placed, unowned []forward, err error) {
	mark := tag(p.Owner)
	known := p.known()
	asked := make([]placed, len(known))
	for i, f := range known {
		asked[i] = f.element(mark)
	}
	there, err := r.lookUp(asked)
	if err != nil {
		return nil, nil, err
	}
	for i, e := range asked {
		if _, ok := there.of(e); !ok {
			unowned = append(unowned, known[i])
		}
	}
	mine, err = r.completed(p.Owner, there.markedBy(mark))
	return mine, unowned, err
}

// completed adds to an owner's ports what else its own element tells of; none of
// it when that element is not there.
func (r reader) completed(owner conf.Key, ports []placed) ([]placed, error) {
	self := placed{ownersMap, element{key: ifnameBytes(tag(owner))}}
	there, err := r.lookUp([]placed{self})
	if err != nil {
		return nil, err
	}
	e, ok := there.of(self)
	if !ok {
		return nil, nil
	}
	o, err := parseOwned(e.data)
	if err != nil {
		return nil, err
	}
	if len(ports) != o.ports {
		everything, err := r.everything(portMaps()...)
		if err != nil {
			return nil, err
		}
		ports = everything.markedBy(tag(owner))
	}
	masquerade, err := r.lookUp(masqueraded(o.published(owner), o.hostIf))
	if err != nil {
		return nil, err
	}
	return append(append(ports, masquerade.markedBy(tag(owner))...), placed{ownersMap, e}), nil
}

// markedBy are the elements that bear the mark.
func (c contents) markedBy(mark string) []placed {
	var all []placed
	for set, es := range c {
		for _, e := range es {
			if e.comment == mark {
				all = append(all, placed{set, e})
			}
		}
	}
	return all
}

func (nftRules) Owners(ctx context.Context, network string) ([]conf.Key, error) {
	var keys []conf.Key
	err := retry(ctx, func() error {
		keys = nil
		r, err := newReader()
		if err != nil {
			return err
		}
		defer r.close()
		return r.list(ownersMap, func(e element) bool {
			if k, ok := parseOwner(e.comment); ok && (network == "" || k.Network == network) {
				keys = append(keys, k)
			}
			return true
		})
	})
	if err != nil {
		return nil, fmt.Errorf("nftables: listing owners: %w", err)
	}
	return keys, nil
}

// nftError says what was being done; an error for people is passed on as it is.
func nftError(doing string, owner conf.Key, err error) error {
	if isForPeople(err) {
		return err
	}
	hint := ""
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOENT) {
		hint = "; when the kernel lacks NAT in inet tables (it takes 5.2 and the modules nft_chain_nat, nft_fib_inet, nft_masq), set portmap.backend to iptables"
	}
	return conf.Errorf(conf.ErrNetwork, "nftables: %s %s: %s%s", doing, owner, strings.TrimSpace(err.Error()), hint)
}
