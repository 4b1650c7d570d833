package supervisor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Raising is always allowed, so one that is spared needs no rights to give that up.
func TestUnspare(t *testing.T) {
	for before, after := range map[string]string{"-999\n": "0", "-1\n": "0", "0\n": "0\n", "500\n": "500\n"} {
		file := filepath.Join(t.TempDir(), "oom_score_adj")
		require.NoError(t, os.WriteFile(file, []byte(before), 0o600))
		unspare(file)
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, after, string(b))
	}
}
