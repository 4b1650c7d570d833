package record

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func startSleep(t *testing.T) (*exec.Cmd, Process) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := ProcessOf(cmd.Process.Pid)
	require.NoError(t, err)
	return cmd, p
}

func TestProcessIsNotMistaken(t *testing.T) {
	_, p := startSleep(t)
	require.True(t, p.Alive())
	require.False(t, (*Process)(nil).Alive())
	recycled := Process{PID: p.PID, StartTime: p.StartTime + 1}
	require.False(t, recycled.Alive(), "another process has this pid now")
	require.NoError(t, recycled.Stop(context.Background()), "it has ended: success")
	require.True(t, p.Alive(), "and the other one was let be")
	for _, pid := range []int{0, -1, 1 << 30} {
		require.False(t, (&Process{PID: pid}).Alive(), pid)
		require.NoError(t, Process{PID: pid}.Stop(context.Background()), pid)
	}
}

// A process with no descriptor left cannot look, which says nothing about the other one.
func TestNoDescriptorIsNoDeath(t *testing.T) {
	_, p := startSleep(t)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	seen := p.Alive()
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.True(t, seen)
}

func TestStop(t *testing.T) {
	cmd, p := startSleep(t)
	require.NoError(t, p.Stop(context.Background()))
	require.False(t, p.Alive(), "a zombie has ended: only its parent, this test, can free it")
	require.NoError(t, p.Stop(context.Background()), "again")
	require.Equal(t, "signal: terminated", cmd.Wait().Error())
}

// A command name may hold blanks and brackets, which are not the end of it.
func TestProcStatOfAnOddName(t *testing.T) {
	dir := t.TempDir()
	odd := dir + "/a) S 1 (b"
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	b, err := os.ReadFile(sleep)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(odd, b, 0o755))
	cmd := exec.Command(odd, "60")
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, err := ProcessOf(cmd.Process.Pid)
	require.NoError(t, err)
	own, err := ProcessOf(os.Getpid())
	require.NoError(t, err)
	require.GreaterOrEqual(t, p.StartTime, own.StartTime)
	require.True(t, p.Alive())
}
