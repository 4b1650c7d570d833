package delegate

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// TestFamilies shows what the configuration of an IPAM plugin tells about the
// addresses to come.
func TestFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		delegate string
		v4, v6   bool
	}{
		"subnet":         {`{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/24","routes":[{"dst":"::/0"}]}}`, true, false},
		"ranges":         {`{"type":"bridge","ipam":{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd01::/64"}]]}}`, true, true},
		"static":         {`{"type":"bridge","ipam":{"type":"static","addresses":[{"address":"fd01::2/64"}]}}`, false, true},
		"ranges given":   {`{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}}`, true, false},
		"not asked for":  {`{"type":"bridge","ipam":{"type":"host-local"}}`, false, false},
		"dhcp":           {`{"type":"bridge","ipam":{"type":"dhcp"}}`, false, false},
		"no addresses":   {`{"type":"firewall"}`, false, false},
		"foreign kinds":  {`{"type":"own","ipam":{"subnet":4}}`, false, false},
		"foreign ranges": {`{"type":"own","ipam":"elsewhere"}`, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := conf.ParseDelegate("d", json.RawMessage(c.delegate))
			require.NoError(t, err)
			n, err := conf.Parse([]byte(`{"name":"n","type":"ambi","runtimeConfig":{"ipRanges":[[{"subnet":"10.2.0.0/24"}]]}}`))
			require.NoError(t, err)
			v4, v6 := (&Chain{Delegates: []conf.Delegate{d}, Attachment: &conf.Attachment{NetConf: n}}).Families()
			require.Equal(t, []bool{c.v4, c.v6}, []bool{v4, v6})
		})
	}
}
