package cli

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSignalEndsWhoWaits: a command that waits for what never comes, and does not look at its
// context, ends by the signal all the same, and one that does ends by itself.
func TestSignalEndsWhoWaits(t *testing.T) {
	t.Parallel()
	if os.Getenv("AMBI_TEST_WAITS") != "" {
		ctx := signalContext()
		fmt.Println("waits")
		<-ctx.Done()
		fmt.Println("told")
		select {}
	}
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestSignalEndsWhoWaits$")
		cmd.Env = append(os.Environ(), "AMBI_TEST_WAITS=1")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		require.True(t, lines.Scan())
		require.Equal(t, "waits", lines.Text())
		require.NoError(t, cmd.Process.Signal(s))
		require.True(t, lines.Scan())
		require.Equal(t, "told", lines.Text())
		var ended *exec.ExitError
		require.ErrorAs(t, cmd.Wait(), &ended)
		require.Equal(t, s, ended.Sys().(syscall.WaitStatus).Signal())
	}
}
