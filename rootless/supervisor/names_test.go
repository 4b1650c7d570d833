package supervisor

import (
	"log/slog"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNamesNotServed: a name server that could not begin is not taken for one that serves.
func TestNamesNotServed(t *testing.T) {
	t.Parallel()
	h := &hub{twin: newTwin("test", slog.New(slog.DiscardHandler))}
	noSocket, err := os.Open(os.DevNull)
	require.NoError(t, err)
	require.Error(t, h.serveNamesOn([]netip.Addr{netip.MustParseAddr("10.4.0.1")}, []*os.File{noSocket}))
	require.Nil(t, h.names.server)
	require.Empty(t, h.names.copies)
	require.NotContains(t, h.twin.items, keyNames, "or the next keeper would be handed closed files")
}
