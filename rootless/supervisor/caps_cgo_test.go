//go:build cgo

package supervisor

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// A build that could not give up its capabilities does not get as far as a network.
func TestCgoCannotDropCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have some")
	}
	require.ErrorContains(t, dropCapabilities(), "build with CGO_ENABLED=0")
}
