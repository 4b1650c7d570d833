package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

func TestEveryErrorGetsACode(t *testing.T) {
	_, missing := os.Open("/nonexistent")
	own := conf.Errorf(types.ErrTryAgainLater, "later")
	for _, test := range []struct {
		err  error
		code uint
	}{
		{missing, types.ErrIOFailure},
		{fmt.Errorf("state folder: %w", missing), types.ErrIOFailure},
		{fmt.Errorf("state folder belongs to uid 1: %w", unix.EACCES), types.ErrIOFailure},
		{fmt.Errorf("state folder belongs to uid 1: %w", fs.ErrPermission), types.ErrIOFailure},
		{fmt.Errorf("adding a rule: %w", unix.EPERM), conf.ErrNetwork},
		{errors.New("anything"), conf.ErrNetwork},
		{fmt.Errorf("wrapped: %w", own), types.ErrTryAgainLater},
	} {
		var e *types.Error
		require.ErrorAs(t, coded(test.err), &e)
		require.Equal(t, test.code, e.Code, "%v", test.err)
	}
	require.NoError(t, coded(nil))
}

// TestWhatIsUsedUpIsNamed: of what is full, closed or used up the error says what to do.
func TestWhatIsUsedUpIsNamed(t *testing.T) {
	for errno, remedy := range map[error]string{
		unix.ENOSPC: "make room there", unix.EDQUOT: "quota", unix.EROFS: "remount,rw", unix.EMFILE: "ulimit -n", unix.ENFILE: "fs.file-max",
	} {
		err := fmt.Errorf("writing the record: %w", &os.PathError{Op: "write", Path: "/run/ambi/x", Err: errno})
		require.Contains(t, conf.Remedy(coded(err)), remedy)
	}
}
