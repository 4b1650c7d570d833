package names

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzNameServers: a file that anybody may have written.
func FuzzNameServers(f *testing.F) {
	f.Add([]byte("# a\nnameserver 127.0.0.53\noptions edns0\nnameserver fe80::1%eth0\n"))
	f.Add([]byte("nameserver\nnameserver x\nnameserver ::ffff:10.0.0.1 # x\n nameserver 0.0.0.0"))
	f.Fuzz(func(t *testing.T, text []byte) {
		servers := nameServers(text)
		require.LessOrEqual(t, len(servers), maxNameServers)
		for _, s := range servers {
			require.True(t, s.IsValid())
		}
	})
}

func TestNameServers(t *testing.T) {
	for text, want := range map[string][]string{
		"":                      nil,
		"search example.org\n":  nil,
		"nameserver 192.0.2.1":  {"192.0.2.1"},
		"\tnameserver  ::1 x\n": {"::1"},
		"#nameserver 192.0.2.1": nil,
		"nameserver 0.0.0.0\n":  {"127.0.0.1"},
		"nameserver 1.2.3.4\nnameserver 1.2.3.4\r\nnameserver fe80::1%lo\n":                                                      {"1.2.3.4", "fe80::1%lo"},
		"nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4\nnameserver 1.0.0.5\nnameserver 1.0.0.6": {"1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4", "1.0.0.5"},
	} {
		var got []string
		for _, s := range nameServers([]byte(text)) {
			got = append(got, s.String())
		}
		require.Equal(t, want, got, text)
	}
}
