package rootless

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// FuzzReady: nothing that comes down the pipe makes ADD panic, and what is taken for the word
// of a supervisor is that it is ready or why it is not.
func FuzzReady(f *testing.F) {
	for _, s := range []string{"", "null", "{}", `{"done":true}`, `{"done":false}`, `{"error":{"code":100,"msg":"x"}}`, `{"error":{}}`, `{"done":`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := supervisor.DecodeReady(bytes.NewReader(b))
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		require.True(t, m.Done || m.Error != nil)
	})
}
