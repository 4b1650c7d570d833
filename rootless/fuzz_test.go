package rootless

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

const planJSON = `{"ifName":"eth0","mtu":65520,"ipv4":{"addresses":["10.0.2.100/24"],"gateway":"10.0.2.2","dns":"10.0.2.3"},"ipv6":{"addresses":["fd00::64/64"],"gateway":"fd00::2","dns":""}}`

// FuzzReady: nothing that comes down the pipe makes ADD panic, and what it takes
// for the word of a supervisor that is ready makes a result that can be printed.
func FuzzReady(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", `{"plan":null}`, `{"plan":{}}`, `{"plan":` + planJSON + `}`, `{"plan":{"ipv4":{"addresses":[""]}}}`,
		`{"lostRights":true}`, `{"error":{"code":100,"msg":"x"}}`, `{"error":{}}`, `{"plan":`,
	} {
		f.Add([]byte(s), false)
	}
	f.Add([]byte("{}"), true)
	f.Fuzz(func(t *testing.T, b []byte, cleanOnly bool) {
		m, err := supervisor.DecodeReady(bytes.NewReader(b), cleanOnly)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		if m.Plan == nil {
			require.True(t, cleanOnly || m.LostRights || m.Error != nil)
			return
		}
		_, err = json.Marshal(result(&conf.Attachment{NetConf: &conf.NetConf{}}, m.Plan))
		require.NoError(t, err)
	})
}
