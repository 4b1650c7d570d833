package nat

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Auto turns to iptables for good reasons only.
func TestWhatSaysThatNftablesIsNotThere(t *testing.T) {
	require.True(t, notThere(os.NewSyscallError("netlink socket", unix.EPROTONOSUPPORT)))
	require.True(t, notThere(fmt.Errorf("netlink: %w", unix.EINVAL)))
	for _, passing := range []error{nil, errors.New("no answer"), unix.ENOBUFS, unix.EINTR, unix.EAGAIN, unix.EIO, unix.EMFILE, unix.EPERM} {
		require.False(t, notThere(passing), "%v", passing)
	}
}
