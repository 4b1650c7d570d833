package names

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// TestMain ends a twin of this process that has outlived it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Role {
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A twin that is killed has a successor at once if it had lived for some time, and otherwise
// at the next look.
func TestTwinThatEndsSoon(t *testing.T) {
	store, err := record.Open(filepath.Join(t.TempDir(), "ambi"))
	require.NoError(t, err)
	var log bytes.Buffer
	l := life{place: Place{store, "web"}, log: slog.New(slog.NewTextHandler(&log, nil))}
	require.NoError(t, os.MkdirAll(l.place.Dir(), 0o700))
	defer l.endTwin()
	kill := func() (followed bool) {
		require.NoError(t, unix.Kill(l.twin.PID, unix.SIGKILL))
		require.NoError(t, unix.Waitid(unix.P_PID, l.twin.PID, nil, unix.WEXITED|unix.WNOWAIT, nil))
		l.follow()
		return l.twin != nil
	}
	l.seeToTwin()
	require.False(t, kill(), "another one at once")
	<-l.again
	l.seeToTwin()
	require.True(t, l.twin.Alive())
	l.forked = time.Now().Add(-soon * time.Second)
	require.True(t, kill())
	require.True(t, l.twin.Alive())
	require.Equal(t, 2, strings.Count(log.String(), "twin had ended"), log.String())
}

// A server that is killed again and again is back within half a second eight times in a row; one that
// cannot live is tried ever less often.
func TestServersThatEndSoon(t *testing.T) {
	require.Zero(t, waitAfter(0))
	for quick := 1; quick <= 8; quick++ {
		require.LessOrEqual(t, waitAfter(quick), 400*time.Millisecond, "%d", quick)
		require.LessOrEqual(t, waitAfter(quick), waitAfter(quick+1))
	}
	require.Equal(t, longestWait, waitAfter(20))
}

// Whatever size the kernel's pages have, what the twin gives back begins and ends with one.
func TestTwinInWholePages(t *testing.T) {
	twin, err := newTwin("/run/ambi", "web", 9, 0)
	require.NoError(t, err)
	defer twin.free()
	require.EqualValues(t, os.Getpagesize(), twin.page)
	require.Zero(t, twin.size%twin.page, "its own memory: %d bytes", twin.size)
	for _, size := range []uintptr{4 << 10, 16 << 10, 64 << 10} {
		twin.page = size
		for _, address := range []uintptr{16 * size, 16*size + 4<<10 - 1, 17*size - 1} {
			kept := twin.around(address)
			require.Equal(t, span{(address/size - 2) * size, (address/size + 2) * size}, kept)
		}
	}
}
