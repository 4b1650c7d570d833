package keeper

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is killed now and then is started again at once, and what dies on and on ever later.
func TestPace(t *testing.T) {
	t.Parallel()
	var p Pace
	for range 200 {
		require.Zero(t, p.Died())
		p.last = p.last.Add(-time.Second)
	}
	for range 10 {
		p.last = time.Now()
		p.Died()
	}
	before := time.Duration(0)
	for range 20 {
		p.last = time.Now()
		pause := p.Died()
		require.Positive(t, pause)
		require.GreaterOrEqual(t, pause, before)
		before = pause
	}
	require.Equal(t, longestPause, before)
	p.last = p.last.Add(-time.Hour)
	require.Zero(t, p.Died())
	require.Equal(t, firstPause, p.Failed())
	require.Equal(t, 2*firstPause, p.Failed())
}
