package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/hub"
)

// A network whose supervisor does not make room runs all the same. That its containers have to
// be started again is said of one that cannot, and of no other.
func TestUpgradeRefused(t *testing.T) {
	const again = "its containers have to be started again"
	for _, c := range []struct{ answer, hint string }{
		{`{"code":6,"msg":"control request \"replace\" is not known"}`, "one of before ambi had keepers cannot be replaced: " + again},
		{`{"code":11,"msg":"delegates are at work in the hub","details":"try again when they are done"}`, "try again when they are done"},
		{`{"code":999,"msg":"starting a keeper of the new program: i/o timeout"}`, "\"ambi doctor\" looks for the cause"},
	} {
		dir := filepath.Join(t.TempDir(), "ambi")
		store, err := record.Open(dir)
		require.NoError(t, err)
		h := hub.Hub{Store: store, Name: "x"}
		require.NoError(t, os.Mkdir(h.Dir(), 0o700))
		require.NoError(t, h.Save(&hub.State{Network: "web"}))
		l, err := net.Listen("unix", h.Path("sock"))
		require.NoError(t, err)
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				var request json.RawMessage
				if json.NewDecoder(conn).Decode(&request) == nil {
					fmt.Fprintf(conn, `{"error":%s}`, c.answer)
				}
				conn.Close()
			}
		}()
		var out, errOut strings.Builder
		a := &app{out: &out, errOut: &errOut, stateDir: dir}
		err = a.upgrade(nil)
		require.Error(t, err)
		a.complain("ambi upgrade", err)
		require.Empty(t, out.String())
		require.Equal(t, 1, strings.Count(errOut.String(), "hint: "), errOut.String())
		require.Contains(t, errOut.String(), "hint: "+c.hint)
		require.Equal(t, strings.HasSuffix(c.hint, again), strings.Contains(errOut.String(), again))
		require.ErrorContains(t, a.upgrade([]string{"nowhere"}), `network "nowhere" is not running`)
		require.Empty(t, out.String())
	}
}
