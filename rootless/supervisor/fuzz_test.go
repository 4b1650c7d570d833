package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/rootless/plan"
)

const planJSON = `{"ifName":"eth0","mtu":65520,"ipv4":{"addresses":["10.0.2.100/24"],"gateway":"10.0.2.2","dns":"10.0.2.3"},"ipv6":{"addresses":["fd00::64/64"],"gateway":"fd00::2","dns":""}}`

// FuzzConfig: nothing on the other pipe makes the supervisor panic before it looks
// at the container, and what it takes survives being written again.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", `{"hub":{}}`, `{"hub":{"network":"web","plan":` + planJSON + `}}`, `{"hub":{"only":{"key":{},"plan":` + planJSON + `,"netns":{"inode":1}}}}`, `{"hub":{"only":{"netns":{"inode":-1}}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		config, err := decodeConfig(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, subnet := range []plan.Subnet{config.Hub.Plan.IPv4, config.Hub.Plan.IPv6} {
			require.Equal(t, subnet.Enabled(), len(subnet.Addresses) > 0)
			_, _ = subnet.First(), subnet.Network()
		}
		first, err := json.Marshal(config)
		require.NoError(t, err)
		again, err := decodeConfig(bytes.NewReader(first))
		require.NoError(t, err, "%s", first)
		second, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(first), string(second))
	})
}

// FuzzReply: whatever a control socket answers is a status or an error.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", `{"status":{"pid":1,"since":"2026-01-02T03:04:05Z","driver":{},"ports":[{"mapping":{"hostPort":80}}]}}`, `{"status":null,"error":null}`,
		`{"error":{"code":7,"msg":"no"}}`, `{"error":{}}`, `{"status":{"pid":"1"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		status, err := decodeReply(bytes.NewReader(b))
		require.Equal(t, err == nil, status != nil)
		var e *types.Error
		if errors.As(err, &e) {
			_ = e.Error()
		}
	})
}
