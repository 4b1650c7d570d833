package rootless

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

func startSleep(t *testing.T) (*exec.Cmd, record.Process) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := identify(cmd.Process.Pid)
	require.NoError(t, err)
	return cmd, p
}

func TestProcessIsNotMistaken(t *testing.T) {
	_, p := startSleep(t)
	require.True(t, alive(&p))
	require.False(t, alive(nil))
	recycled := record.Process{PID: p.PID, StartTime: p.StartTime + 1}
	require.False(t, alive(&recycled), "another process has this pid now")
	require.NoError(t, stop(context.Background(), recycled), "it has ended: success")
	require.True(t, alive(&p), "and the other one was let be")
	for _, pid := range []int{0, -1, 1 << 30} {
		require.False(t, alive(&record.Process{PID: pid}), pid)
		require.NoError(t, stop(context.Background(), record.Process{PID: pid}), pid)
	}
}

// A process with no descriptor left cannot look, which says nothing about the other one.
func TestNoDescriptorIsNoDeath(t *testing.T) {
	_, p := startSleep(t)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	seen := alive(&p)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.True(t, seen)
}

func TestStop(t *testing.T) {
	cmd, p := startSleep(t)
	require.NoError(t, stop(context.Background(), p))
	require.False(t, alive(&p), "a zombie has ended: only its parent, this test, can free it")
	require.NoError(t, stop(context.Background(), p), "again")
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
	p, err := identify(cmd.Process.Pid)
	require.NoError(t, err)
	own, err := identify(os.Getpid())
	require.NoError(t, err)
	require.GreaterOrEqual(t, p.StartTime, own.StartTime)
	require.True(t, alive(&p))
}
