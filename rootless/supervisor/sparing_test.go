package supervisor

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLogSparesRepetition shows that what somebody has the supervisor say without end does not
// take the place of what else it says.
func TestLogSparesRepetition(t *testing.T) {
	now := time.Now()
	var b strings.Builder
	h := newSparing(slog.NewTextHandler(&b, nil))
	h.said.now = func() time.Time { return now }
	log := slog.New(h)
	lines := func(word string) int { return strings.Count(b.String(), word) }

	log.Info("once")
	for i := range 10 * linesAtOnce {
		log.With("driver", "a").Info("again", "n", i) // a logger made of it has no more
	}
	log.Info("other")
	require.Equal(t, linesAtOnce, lines("msg=again"))
	require.Equal(t, 1, lines("msg=other"))
	require.NotContains(t, b.String(), "omitted")

	now = now.Add(3 * lineAgainIn)
	for range 10 {
		log.Info("again")
	}
	require.Equal(t, linesAtOnce+3, lines("msg=again"))
	require.Equal(t, 1, lines(fmt.Sprintf("omitted=%d", 9*linesAtOnce)))

	now = now.Add(time.Hour)
	log.Info("again")
	require.Equal(t, 1, lines("omitted=7"))
	require.Equal(t, linesAtOnce+4, lines("msg=again"))
}

func TestEveryLogIsSparing(t *testing.T) {
	var b strings.Builder
	log := newLogger(&b, "")
	for range 100 * linesAtOnce {
		log.Info("slirp4netns", "says", "again")
	}
	require.Less(t, strings.Count(b.String(), "again"), 50*linesAtOnce)
}
