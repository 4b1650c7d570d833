package nat

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// isForPeople says whether an error already has its CNI code and remedy.
func isForPeople(err error) bool {
	var e *types.Error
	return errors.As(err, &e)
}

// inUse is the error of a port that another attachment publishes.
func inUse(s slot, owner string) error {
	by := "published by another attachment"
	if k, ok := parseOwner(owner); ok {
		by = fmt.Sprintf("published by container %s of network %s (interface %s)", k.ContainerID, k.Network, k.IfName)
	}
	return conf.Errorf(conf.ErrPortInUse, "host port %s is in use: %s; choose another port or host address, or remove that container (\"ambi gc\" if it is gone)", s, by)
}

// alreadyPublished is the error of a second ADD without a DEL between.
func alreadyPublished(k conf.Key) error {
	return conf.Errorf(conf.ErrPortInUse, "ports of container %s of network %s (interface %s) are published already; DEL comes before another ADD", k.ContainerID, k.Network, k.IfName)
}

// conflict finds the first port that cannot be published and names its owner. When
// there is none it returns the mappings that no sibling publishes.
func (r reader) conflict(p Published, fs []forward) ([]forward, error) {
	self := placed{ownersMap, element{key: ifnameBytes(tag(p.Owner))}}
	rivals := []placed{self}
	for _, f := range fs {
		wide := f
		wide.host = f.family().unspecified()
		rivals = append(rivals, f.element(""), wide.element(""), f.taken(""))
	}
	there, err := r.lookUp(rivals)
	if err != nil {
		return nil, err
	}
	if _, ok := there.of(self); ok {
		return nil, alreadyPublished(p.Owner)
	}
	left := there.notOfSiblings(p.Owner, fs, r.ownerNames())
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

// isConflict says whether an error is that of a port in use.
func isConflict(err error) bool {
	var e *types.Error
	return errors.As(err, &e) && e.Code == conf.ErrPortInUse
}
