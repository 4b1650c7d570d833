package plugin

import (
	"encoding/json"
	"net"
	"strconv"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"
)

// TestWithPreviousIsLinear: a quadratic one takes longer than a test may.
func TestWithPreviousIsLinear(t *testing.T) {
	const n = 50_000
	prev := &types100.Result{}
	for i := range n {
		at := net.IPNet{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)), Mask: net.CIDRMask(32, 32)}
		prev.Interfaces = append(prev.Interfaces, &types100.Interface{Name: strconv.Itoa(i), Sandbox: "/run/netns/c"})
		prev.IPs = append(prev.IPs, &types100.IPConfig{Address: at, Interface: types100.Int(i)})
		prev.Routes = append(prev.Routes, &types.Route{Dst: at})
	}
	joined := withPrevious(prev, &types100.Result{Interfaces: []*types100.Interface{{Name: "eth0"}}})
	require.Len(t, joined.Interfaces, n+1)
	require.Len(t, joined.IPs, n)
	require.Len(t, joined.Routes, n)
	require.Equal(t, n, *joined.IPs[n-1].Interface)
}

func TestWithPrevious(t *testing.T) {
	const (
		net0 = `{"name":"net0","sandbox":"/run/netns/c"}`
		eth0 = `{"name":"eth0","sandbox":"/run/netns/c"}`
		own  = `{"cniVersion":"1.1.0","interfaces":[` + eth0 + `],"ips":[{"address":"10.0.2.100/24","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.2.2"}],"dns":{"nameservers":["10.0.2.3"]}}`
	)
	for name, tt := range map[string]struct{ prev, result, want string }{
		"without one": {"", own, own},
		"everything is new": {
			`{"interfaces":[` + net0 + `],"ips":[{"address":"198.51.100.7/24","interface":0}],"routes":[{"dst":"203.0.113.0/24","mtu":1280,"table":100}],"dns":{"nameservers":["192.0.2.53"]}}`,
			own,
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `,` + net0 + `],"ips":[{"address":"10.0.2.100/24","interface":0},{"address":"198.51.100.7/24","interface":1}],
			  "routes":[{"dst":"0.0.0.0/0","gw":"10.0.2.2"},{"dst":"203.0.113.0/24","mtu":1280,"table":100}],"dns":{"nameservers":["10.0.2.3"]}}`,
		},
		"some of it is there": {
			`{"interfaces":[` + net0 + `,` + eth0 + `],"ips":[{"address":"10.0.2.100/24","interface":1},{"address":"10.9.0.1/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.2.2"}],"dns":{}}`,
			own,
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `,` + net0 + `],"ips":[{"address":"10.0.2.100/24","interface":0},{"address":"10.9.0.1/24"}],
			  "routes":[{"dst":"0.0.0.0/0","gw":"10.0.2.2"}],"dns":{"nameservers":["10.0.2.3"]}}`,
		},
		"its name servers": {`{"dns":{"nameservers":["192.0.2.53"]}}`, `{"cniVersion":"1.1.0"}`, `{"cniVersion":"1.1.0","dns":{"nameservers":["192.0.2.53"]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			var prev *types100.Result
			if tt.prev != "" {
				require.NoError(t, json.Unmarshal([]byte(tt.prev), &prev))
			}
			var result types100.Result
			require.NoError(t, json.Unmarshal([]byte(tt.result), &result))
			got, err := json.Marshal(withPrevious(prev, &result))
			require.NoError(t, err)
			require.JSONEq(t, tt.want, string(got))
			again, err := json.Marshal(&result)
			require.NoError(t, err)
			require.JSONEq(t, tt.result, string(again), "the result itself must stay as it was")
		})
	}
}

func TestOfContainer(t *testing.T) {
	const (
		bridge = `{"name":"ambi-web"}`
		end    = `{"name":"vethab","mac":"02:00:00:00:00:01"}`
		eth0   = `{"name":"eth0","sandbox":"/run/netns/c"}`
		rest   = `"routes":[{"dst":"0.0.0.0/0","gw":"10.89.0.1"}],"dns":{"nameservers":["10.89.0.1"]}`
	)
	for name, tt := range map[string]struct{ result, want string }{
		"of a hub": {
			`{"cniVersion":"1.1.0","interfaces":[` + bridge + `,` + end + `,` + eth0 + `],"ips":[{"address":"10.89.0.2/16","gateway":"10.89.0.1","interface":2},{"address":"10.89.0.1/16","interface":0}],` + rest + `}`,
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `],"ips":[{"address":"10.89.0.2/16","gateway":"10.89.0.1","interface":0}],` + rest + `}`,
		},
		"all inside": {
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `],"ips":[{"address":"10.0.2.100/24","interface":0}]}`,
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `],"ips":[{"address":"10.0.2.100/24","interface":0}]}`,
		},
		"of nobody's interface": {
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `],"ips":[{"address":"10.9.0.1/24"},{"address":"10.9.0.2/24","interface":7}]}`,
			`{"cniVersion":"1.1.0","interfaces":[` + eth0 + `],"ips":[{"address":"10.9.0.1/24"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var result types100.Result
			require.NoError(t, json.Unmarshal([]byte(tt.result), &result))
			got, err := json.Marshal(ofContainer(&result))
			require.NoError(t, err)
			require.JSONEq(t, tt.want, string(got))
			again, err := json.Marshal(&result)
			require.NoError(t, err)
			require.JSONEq(t, tt.result, string(again), "the record has the whole result")
		})
	}
}
