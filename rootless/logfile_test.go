package rootless

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func openLog(t *testing.T, path string) *logFile {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return newLogFile(f)
}

func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	largest := int64(0)
	const lines = 40000 // of 100 bytes: nearly four times the limit
	for _, part := range []int{0, 1} {
		l := openLog(t, path) // a second supervisor goes on in the same file
		for i := part * lines / 2; i < (part+1)*lines/2; i++ {
			_, err := fmt.Fprintf(l, "%0*d\n", 99, i)
			require.NoError(t, err)
			if i%500 == 0 || l.size > logLimit-200 {
				st, err := os.Stat(path)
				require.NoError(t, err)
				largest = max(largest, st.Size())
			}
		}
	}
	require.LessOrEqual(t, largest, int64(logLimit))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	got := strings.Split(strings.TrimSpace(string(b)), "\n")
	require.GreaterOrEqual(t, len(b), logKept)
	for i, line := range got[1:] { // the first may be cut
		require.Equal(t, fmt.Sprintf("%0*d", 99, lines-len(got)+1+i), line, "the last lines, and none of them twice")
	}
}

func TestLoggerLevels(t *testing.T) {
	for level, want := range map[string]string{"debug": "DIWE", "info": "IWE", "warn": "WE", "error": "E", "": "IWE", "loud": "IWE"} {
		var b strings.Builder
		log := newLogger(&b, level)
		for l, text := range map[slog.Level]string{slog.LevelDebug: "D", slog.LevelInfo: "I", slog.LevelWarn: "W", slog.LevelError: "E"} {
			log.Log(t.Context(), l, "said-"+text)
		}
		got := ""
		for _, text := range "DIWE" {
			if strings.Contains(b.String(), "said-"+string(text)) {
				got += string(text)
			}
		}
		require.Equal(t, want, got, level)
	}
}

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
