package forward

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPace(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread goes with the test
	var p pace
	p.ownThread()
	require.True(t, p.mayChoose)
	rounds := func(n, moved int) (brief bool) {
		for range n {
			p.moved = moved
			brief = p.brief()
		}
		return brief
	}
	require.False(t, rounds(leastBriefly-1, 64))
	require.False(t, rounds(5, 0), "rounds that move nothing say nothing")
	require.True(t, rounds(1, 64))
	require.True(t, rounds(5, 0))
	require.False(t, rounds(leastBulky-1, 1<<20))
	require.Equal(t, schedOther, sysScheduler())
	require.False(t, rounds(1, 1<<20))
	require.Equal(t, schedBatch, sysScheduler())
	require.False(t, rounds(leastBriefly-1, 1), "a short tail does not end it")
	require.False(t, rounds(1, 1<<20))
	require.Equal(t, schedBatch, sysScheduler())
	require.True(t, rounds(leastBriefly, 1))
	require.Equal(t, schedOther, sysScheduler())
}

// Who has chosen a policy for the supervisor has chosen it for its threads.
func TestPaceLeavesAnotherPolicy(t *testing.T) {
	runtime.LockOSThread()
	require.Zero(t, sysSetScheduler(schedBatch))
	var p pace
	p.ownThread()
	for _, moved := range []int{1 << 20, 1} { // there and back
		for range leastBulky {
			p.moved = moved
			p.brief()
		}
	}
	require.Equal(t, schedBatch, sysScheduler())
}
