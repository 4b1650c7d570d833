package supervisor

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/rootless/driver"
)

// TestWayOutOfADriverThatIsDown: while the one that counts is not there, nobody knows.
func TestWayOutOfADriverThatIsDown(t *testing.T) {
	for _, only := range []*Only{nil, {}} {
		h := &hub{counts: (&driver.Command{Driver: "relay"}).Counts(), config: Hub{Only: only}}
		require.Nil(t, h.wayOut(nil, nil, new(uint64)))
	}
}
