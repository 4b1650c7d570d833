//go:build cgo

package supervisor

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/rootless/driver"
)

// A build that could not give up its capabilities does not get as far as a network.
func TestCgoCannotDropCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have some")
	}
	require.ErrorContains(t, (&hub{}).dropCapabilities(&driver.Command{}), "build with CGO_ENABLED=0")
}
