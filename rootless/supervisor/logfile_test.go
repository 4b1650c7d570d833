package supervisor

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
