package record

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/flock"
)

// with starts a process that has the file open.
func with(t *testing.T, f *os.File) Process {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{f}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := ProcessOf(cmd.Process.Pid)
	require.NoError(t, err)
	return p
}

func TestHoldersOfTheLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alive")
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	asked, unlocked := open(path), open(path)
	require.Empty(t, holding(asked))

	locked := open(path)
	require.NoError(t, flock.Try(locked, flock.Exclusive))
	first, second := with(t, locked), with(t, locked)
	locked.Close() // who took it does not hold it any more
	with(t, unlocked)
	other := open(path + "-other")
	require.NoError(t, flock.Try(other, flock.Exclusive))
	with(t, other)
	require.ElementsMatch(t, []Process{first, second}, holding(asked))
}
