package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVersion: what a checkout calls itself is a semantic version in every state of it,
// and needs no tag.
func TestVersion(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile("../hack/version")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "hack"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "hack/version"), script, 0o755))
	number := func(s string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "VERSION"), []byte(s+"\n"), 0o644))
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-c", "user.name=x", "-c", "user.email=x@example.invalid"}, args...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	says := func(want string) {
		t.Helper()
		out, err := exec.Command(filepath.Join(dir, "hack/version")).Output()
		require.NoError(t, err)
		require.Equal(t, want, strings.TrimSpace(string(out)))
	}

	number("v0.1.1-dev")
	says("v0.1.1-dev") // an archive without .git
	git("init", "-q")
	git("add", ".")
	git("commit", "-qm", "one")
	commit := git("rev-parse", "HEAD")[:12]
	says("v0.1.1-dev+g" + commit)
	number("v0.1.1")
	says("v0.1.1+dirty")
	git("commit", "-qam", "v0.1.1")
	says("v0.1.1")
	git("tag", "v9.9.9")
	says("v0.1.1")
	number("v0.2.0-dev")
	says("v0.2.0-dev+g" + git("rev-parse", "HEAD")[:12] + ".dirty")
}
