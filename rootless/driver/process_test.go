package driver

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTail(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes []string
		want   string
		lines  int
	}{
		{"nothing", nil, "it printed nothing", 0},
		{"empty lines", []string{"\n\n", "\n"}, "it printed nothing", 0},
		{"one", []string{"one\n"}, "one", 1},
		{"the last two", []string{"one\ntwo\nthr", "ee\n"}, "two | three", 3},
		{"an unfinished one", []string{"one\ntwo\nthree"}, "two | three", 2},
		{"byte by byte", strings.Split("one\ntwo\n", ""), "one | two", 2},
		{"many", []string{strings.Repeat("old\n", 1000), "new\n"}, "old | new", tailLines},
		{"no line at all", []string{strings.Repeat("x", 5000)}, strings.Repeat("x", 5000), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var logged strings.Builder
			tail := &tail{log: slog.New(slog.NewTextHandler(&logged, nil))}
			for _, w := range tt.writes {
				n, err := tail.Write([]byte(w))
				require.NoError(t, err)
				require.Equal(t, len(w), n)
			}
			require.Equal(t, tt.want, tail.last())
			require.Equal(t, tt.want, tail.last(), "asking changes nothing")
			require.LessOrEqual(t, len(tail.lines), tailLines)
			require.Len(t, tail.lines, tt.lines)
			require.LessOrEqual(t, len(tail.part), 4096)
		})
	}
}

// A driver that never ends a line does not fill the memory.
func TestTailIsBounded(t *testing.T) {
	tail := &tail{log: slog.New(slog.DiscardHandler)}
	for range 10000 {
		_, err := tail.Write([]byte(strings.Repeat("x", 1000)))
		require.NoError(t, err)
	}
	held := len(tail.part)
	for _, l := range tail.lines {
		held += len(l)
	}
	require.Less(t, held, 64<<10)
}
