package forward

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAdmits: one that takes what it can leaves some to each that comes later.
func TestAdmits(t *testing.T) {
	for _, times := range []int{timesUnderWay, timesOpen} {
		const most = 9000
		all := 0
		for comer := range 3 {
			own := 0
			for admits(own, all, most, times) {
				own++
				all++
			}
			require.Greater(t, own, 50, "who comes after %d others", comer)
			if comer == 0 {
				require.InDelta(t, most*times/(times+1), own, 2)
			}
		}
		require.LessOrEqual(t, all, most)
	}
}
