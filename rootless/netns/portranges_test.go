package netns

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPortRanges(t *testing.T) {
	var s portRanges
	for _, tt := range []struct {
		port  uint16
		added portRange
		gone  []portRange
		runs  []portRange
	}{
		{80, portRange{80, 80}, nil, []portRange{{80, 80}}},
		{80, portRange{}, nil, []portRange{{80, 80}}},
		{82, portRange{82, 82}, nil, []portRange{{80, 80}, {82, 82}}},
		{81, portRange{80, 82}, []portRange{{80, 80}, {82, 82}}, []portRange{{80, 82}}},
		{65535, portRange{65535, 65535}, nil, []portRange{{80, 82}, {65535, 65535}}},
		{1, portRange{1, 1}, nil, []portRange{{1, 1}, {80, 82}, {65535, 65535}}},
		{65534, portRange{65534, 65535}, []portRange{{65535, 65535}}, []portRange{{1, 1}, {80, 82}, {65534, 65535}}},
	} {
		added, gone := s.add(tt.port)
		require.Equal(t, tt.added, added, tt.port)
		require.ElementsMatch(t, tt.gone, gone, tt.port)
		require.Equal(t, tt.runs, s.runs, tt.port)
	}
	added, gone := s.remove(81)
	require.Equal(t, []portRange{{80, 80}, {82, 82}}, added)
	require.Equal(t, portRange{80, 82}, gone)
	added, gone = s.remove(81)
	require.Empty(t, added)
	require.Equal(t, portRange{}, gone)
	added, gone = s.remove(1)
	require.Empty(t, added)
	require.Equal(t, portRange{1, 1}, gone)
}

// Against a plain set, and against the rules of a kernel that did what it was
// told: both show the same ports after any operations.
func TestPortRangesAgainstAModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, window := range []uint16{8, 64, 1024} { // small ones join and split often
		base := uint16(65536 - int(window))
		var s portRanges
		model, rules := make(map[uint16]bool), make(map[portRange]bool)
		for range 3000 {
			port := base + uint16(random.IntN(int(window)))
			if random.IntN(2) == 0 {
				applyAdd(t, &s, rules, port)
				model[port] = true
			} else {
				applyRemove(t, &s, rules, port)
				delete(model, port)
			}
			requireModel(t, &s, model, rules)
		}
	}
}

func applyAdd(t *testing.T, s *portRanges, rules map[portRange]bool, port uint16) {
	t.Helper()
	added, gone := s.add(port)
	if added == (portRange{}) {
		require.Empty(t, gone)
		return
	}
	require.NotContains(t, rules, added)
	rules[added] = true
	for _, r := range gone {
		require.Contains(t, rules, r)
		delete(rules, r)
	}
}

func applyRemove(t *testing.T, s *portRanges, rules map[portRange]bool, port uint16) {
	t.Helper()
	added, gone := s.remove(port)
	for _, r := range added {
		require.NotContains(t, rules, r)
		rules[r] = true
	}
	if gone != (portRange{}) {
		require.Contains(t, rules, gone)
		delete(rules, gone)
	}
}

func requireModel(t *testing.T, s *portRanges, model map[uint16]bool, rules map[portRange]bool) {
	t.Helper()
	ports := 0
	for i, r := range s.runs {
		require.True(t, r.first <= r.last)
		require.True(t, i == 0 || int(s.runs[i-1].last)+1 < int(r.first), "runs touch or are not sorted: %v", s.runs)
		require.True(t, rules[r], "no rule for %v", r)
		for p := int(r.first); p <= int(r.last); p++ {
			require.True(t, model[uint16(p)], "port %d is not in the set", p)
			ports++
		}
	}
	require.Equal(t, len(model), ports)
	require.Len(t, rules, len(s.runs))
}
