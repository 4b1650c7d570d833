package nat

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// Auto turns to iptables for good reasons only.
func TestWhatSaysThatNftablesIsNotThere(t *testing.T) {
	require.True(t, notThere(os.NewSyscallError("netlink socket", unix.EPROTONOSUPPORT)))
	require.True(t, notThere(fmt.Errorf("netlink: %w", unix.EINVAL)))
	for _, passing := range []error{nil, errors.New("no answer"), unix.ENOBUFS, unix.EINTR, unix.EAGAIN, unix.EIO, unix.EMFILE, unix.EPERM} {
		require.False(t, notThere(passing), "%v", passing)
	}
}

// TestCheckBesideOthers shows that Check is content while those who come first to a
// host lay the table out at the same time.
func TestCheckBesideOthers(t *testing.T) {
	t.Parallel()
	l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
	web := publishWeb(port(conf.TCP, "", 80, 80))
	l.add(t, web)
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		l.host.do(t, func() {
			for {
				select {
				case <-stop:
					return
				default:
					require.NoError(t, commitInTable(false, 0, nil))
				}
			}
		})
	})
	defer others.Wait()
	defer close(stop)
	require.NoError(t, l.inHost(t, func(b Backend) error {
		for range 400 {
			if err := b.Check(t.Context(), web); err != nil {
				return err
			}
		}
		return nil
	}))
}
