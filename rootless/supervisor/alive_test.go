package supervisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pretend starts a process that calls itself a supervisor of a hub in this state folder, by a command
// before it.
func pretend(t *testing.T, stateDir string, before ...string) {
	t.Helper()
	hub := filepath.Join(stateDir, "x.hub")
	require.NoError(t, os.MkdirAll(hub, 0o700))
	log, err := os.Create(filepath.Join(hub, "log"))
	require.NoError(t, err)
	defer log.Close()
	script := filepath.Join(t.TempDir(), Role)
	require.NoError(t, os.WriteFile(script, []byte("echo\nread word\n"), 0o600))
	argv := slices.Concat(before, []string{"sh", Role, "web/box/eth0 net:[1]"})
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stderr = filepath.Dir(script), log
	said, err := cmd.StdoutPipe()
	require.NoError(t, err)
	end, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { end.Close(); _ = cmd.Wait() })
	if _, err := said.Read(make([]byte, 1)); err != nil {
		t.Skipf("%v: %v", before, err) // who may not have namespaces
	}
}

func seenIn(stateDir string) (all []Seen) {
	return slices.DeleteFunc(Processes(), func(s Seen) bool { return s.StateDir() != stateDir })
}

func TestTrusted(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	pretend(t, dir)
	seen := seenIn(dir)
	require.Len(t, seen, 1)
	assert.Equal(t, "web", seen[0].Network())
	assert.False(t, seen[0].Trusted(), "of a folder that others can read")
	require.NoError(t, os.Chmod(dir, 0o700))
	assert.True(t, seen[0].Trusted())
	assert.False(t, Seen{Hub: seen[0].Hub}.Trusted(), "of no process")
	require.NoError(t, os.Symlink(dir, dir+".link"))
	defer os.Remove(dir + ".link")
	seen[0].Hub = dir + ".link/x"
	assert.False(t, seen[0].Trusted(), "by a link")
}

// A process with mounts of its own, as a container's, says where its files are, and not ours.
func TestTrustedSeesOurFiles(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	pretend(t, dir, "unshare", "-Urm")
	seen := seenIn(dir)
	require.Len(t, seen, 1)
	assert.False(t, seen[0].Trusted())
}
