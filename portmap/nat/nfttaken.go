package nat

import (
	"encoding/binary"
	"slices"
)

// A port on one address and the same port on every address exclude each other
// when their owners differ, as bind(2) has it. The two are in different maps, so
// the taken map of a family says how a port is used: by one mapping of every
// address, or by mappings of single addresses. The kernel tells them apart when
// elements are inserted, so that Add reads nothing:
//
//   - of every address: inserted with NLM_F_EXCL, refused when anything is there;
//   - of single addresses: inserted without, which is success when the same is
//     there and refused when the data differs.
//
// A counter would have to be deleted to be changed, and a transaction that deletes
// makes the kernel wait for readers when the socket is closed: 10 ms instead of
// less than one.
const (
	byEvery  = 0
	bySingle = 1
)

// taken is the mapping's element in the taken map. That of single addresses
// belongs to nobody: the last one that needs it takes it away.
func (f forward) taken(mark string) placed {
	use := uint32(byEvery)
	if !f.wide() {
		use, mark = bySingle, ""
	}
	return placed{f.family().takenMap(), element{portKey(f.slot), binary.NativeEndian.AppendUint32(nil, use), mark}}
}

// isShared says whether several owners may need the element.
func (e placed) isShared() bool {
	for _, f := range families() {
		if e.set == f.takenMap() {
			return len(e.data) == 4 && binary.NativeEndian.Uint32(e.data) == bySingle
		}
	}
	return false
}

// id names an element among those of all sets.
func (e placed) id() string { return e.set + " " + string(e.key) }

// released are the elements of the taken maps that go with these mappings. Whether
// somebody else's mapping of a single address has the same port takes a look
// through those maps, which only mappings of single addresses cost.
func (r reader) released(fs []forward, mark string) ([]placed, error) {
	asked := make([]placed, len(fs))
	for i, f := range fs {
		asked[i] = f.taken(mark)
	}
	there, err := r.lookUp(asked)
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	if slices.ContainsFunc(fs, func(f forward) bool { return !f.wide() }) {
		if needed, err = r.neededByOthers(mark); err != nil {
			return nil, err
		}
	}
	var gone []placed
	seen := map[string]bool{}
	for _, e := range asked {
		found, ok := there.of(e)
		if ok && found.comment == e.comment && !needed[e.id()] && !seen[e.id()] {
			seen[e.id()] = true
			gone = append(gone, e)
		}
	}
	return gone, nil
}

// neededByOthers are the elements of the taken maps that mappings of other owners
// need.
func (r reader) neededByOthers(mark string) (map[string]bool, error) {
	needed := map[string]bool{}
	for _, fam := range families() {
		set := fam.hostedMap()
		err := r.list(set, func(e element) bool {
			if e.comment != mark {
				needed[parseForward(placed{set, e}).taken("").id()] = true
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return needed, nil
}
