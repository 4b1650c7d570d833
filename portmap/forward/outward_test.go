package forward_test

import (
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/portmap/forward"
)

// TestOutwardThatCannotStart says why, and leaves no worker behind.
func TestOutwardThatCannotStart(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer file.Close()
	before := openDescriptors(t)
	_, err = forward.NewOutward(forward.OutwardConfig{Packets: -1, Listeners: []int{int(file.Fd())}, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, unix.ENOTSOCK)
	require.LessOrEqual(t, openDescriptors(t), before)
}
