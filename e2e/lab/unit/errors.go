package unit

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"
)

// RequireError fails the test unless err is, or wraps, a CNI error of this code, with all
// of these texts in its message or in what it says to do.
func RequireError(t testing.TB, err error, code uint, texts ...string) {
	t.Helper()
	var e *types.Error
	require.True(t, errors.As(err, &e), "a CNI error is wanted, not %v", err)
	require.Equal(t, code, e.Code, e.Msg)
	for _, text := range texts {
		require.Contains(t, e.Error(), text)
	}
}
