package conf_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

func parsePorts(mappings string) ([]conf.PortMapping, error) {
	n, err := conf.Parse(entry(`"runtimeConfig":{"portMappings":` + mappings + `}`))
	if err != nil {
		return nil, err
	}
	return n.RuntimeConfig.PortMappings, nil
}

func TestPortMappings(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"none", `[]`, "[]"},
		{"null", `null`, "[]"},
		{"the protocol is tcp", `[{"hostPort":8080,"containerPort":80}]`, "[*:8080->80/tcp]"},
		{"also when empty", `[{"hostPort":8080,"containerPort":80,"protocol":"","hostIP":""}]`, "[*:8080->80/tcp]"},
		{"in any case", `[{"hostPort":1,"containerPort":2,"protocol":"UDP"},{"hostPort":1,"containerPort":2,"protocol":"Tcp"}]`, "[*:1->2/udp *:1->2/tcp]"},
		{"sctp", `[{"hostPort":65535,"containerPort":65535,"protocol":"sctp"}]`, "[*:65535->65535/sctp]"},
		{"one address", `[{"hostPort":8080,"containerPort":80,"hostIP":"127.0.0.1"}]`, "[127.0.0.1:8080->80/tcp]"},
		{"IPv6", `[{"hostPort":8080,"containerPort":80,"hostIP":"::1"}]`, "[[::1]:8080->80/tcp]"},
		{"a zone", `[{"hostPort":8080,"containerPort":80,"hostIP":"fe80::1%eth0"}]`, "[[fe80::1%eth0]:8080->80/tcp]"},
		{"IPv4 in IPv6", `[{"hostPort":8080,"containerPort":80,"hostIP":"::ffff:192.0.2.1"}]`, "[192.0.2.1:8080->80/tcp]"},
		{"hostPort 0 is not published", `[{"hostPort":0,"containerPort":80},{"containerPort":81},{"hostPort":8080,"containerPort":82}]`, "[*:8080->82/tcp]"},
		{"hostPort 0 twice", `[{"hostPort":0,"containerPort":80},{"hostPort":0,"containerPort":80}]`, "[]"},
		{"one container port twice", `[{"hostPort":1,"containerPort":80},{"hostPort":2,"containerPort":80}]`, "[*:1->80/tcp *:2->80/tcp]"},
		{"one host port of two addresses", `[{"hostPort":1,"containerPort":80,"hostIP":"192.0.2.1"},{"hostPort":1,"containerPort":80,"hostIP":"192.0.2.2"}]`,
			"[192.0.2.1:1->80/tcp 192.0.2.2:1->80/tcp]"},
		{"one host port of both families", `[{"hostPort":1,"containerPort":80,"hostIP":"0.0.0.0"},{"hostPort":1,"containerPort":80,"hostIP":"::"}]`,
			"[0.0.0.0:1->80/tcp [::]:1->80/tcp]"},
		{"every IPv4 address and one of IPv6", `[{"hostPort":1,"containerPort":80,"hostIP":"0.0.0.0"},{"hostPort":1,"containerPort":80,"hostIP":"::1"}]`,
			"[0.0.0.0:1->80/tcp [::1]:1->80/tcp]"},
		{"containerd's key names", `[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"127.0.0.1"}]`, "[127.0.0.1:8080->80/tcp]"},
		{"null is absent", `[{"hostPort":8080,"containerPort":80,"protocol":null,"hostIP":null}]`, "[*:8080->80/tcp]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parsePorts(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, fmt.Sprint(got))
		})
	}
}

func TestPortMappingsRefused(t *testing.T) {
	const first = "runtimeConfig.portMappings[0]"
	for _, tt := range []struct {
		name, in string
		code     uint
		texts    []string
	}{
		{"no array", `{}`, types.ErrInvalidNetworkConfig, []string{`"runtimeConfig.portMappings"`, "array"}},
		{"no object", `[8080]`, types.ErrInvalidNetworkConfig, []string{first, "8080", "object"}},
		{"no containerPort", `[{"hostPort":8080}]`, types.ErrInvalidNetworkConfig, []string{first, "containerPort is missing"}},
		{"containerPort 0", `[{"hostPort":8080,"containerPort":0}]`, types.ErrInvalidNetworkConfig, []string{first + ".containerPort", "0", "1 to 65535"}},
		{"too large", `[{"hostPort":65536,"containerPort":80}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostPort", "65536", "1 to 65535"}},
		{"negative", `[{"hostPort":-1,"containerPort":80}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostPort", "-1"}},
		{"huge", `[{"hostPort":99999999999999999999,"containerPort":80}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostPort"}},
		{"a text", `[{"hostPort":"8080","containerPort":80}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostPort", `"8080"`}},
		{"a fraction", `[{"hostPort":80.5,"containerPort":80}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostPort", "80.5"}},
		{"unknown protocol", `[{"hostPort":1,"containerPort":1,"protocol":"dccp"}]`, types.ErrUnsupportedField, []string{first + ".protocol", `"dccp"`, "tcp, udp and sctp"}},
		{"protocol 6", `[{"hostPort":1,"containerPort":1,"protocol":6}]`, types.ErrInvalidNetworkConfig, []string{first + ".protocol", "6"}},
		{"no address", `[{"hostPort":1,"containerPort":1,"hostIP":"localhost"}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostIP", `"localhost"`, "IPv4 or IPv6"}},
		{"a network", `[{"hostPort":1,"containerPort":1,"hostIP":"10.0.0.0/8"}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostIP", "10.0.0.0/8"}},
		{"multicast", `[{"hostPort":1,"containerPort":1,"hostIP":"224.0.0.1"}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostIP", "224.0.0.1"}},
		{"a zone of IPv4", `[{"hostPort":1,"containerPort":1,"hostIP":"::ffff:192.0.2.1%eth0"}]`, types.ErrInvalidNetworkConfig, []string{first + ".hostIP"}},
		{"twice", `[{"hostPort":1,"containerPort":1},{"hostPort":1,"containerPort":2}]`, types.ErrInvalidNetworkConfig,
			[]string{"runtimeConfig.portMappings[1]", "*:1/tcp is asked for twice"}},
		{"twice by default", `[{"hostPort":1,"containerPort":1,"protocol":"TCP"},{"hostPort":1,"containerPort":1,"hostIP":""}]`, types.ErrInvalidNetworkConfig,
			[]string{"asked for twice"}},
		{"twice as IPv4 in IPv6", `[{"hostPort":1,"containerPort":1,"hostIP":"192.0.2.1"},{"hostPort":1,"containerPort":1,"hostIP":"::ffff:192.0.2.1"}]`,
			types.ErrInvalidNetworkConfig, []string{"192.0.2.1:1/tcp is asked for twice"}},
		{"every address and one", `[{"hostPort":1,"containerPort":1,"hostIP":"192.0.2.1"},{"hostPort":1,"containerPort":1}]`, types.ErrInvalidNetworkConfig,
			[]string{"asked for twice", "*:1->1/tcp", "192.0.2.1:1->1/tcp"}},
		{"every IPv4 address and one", `[{"hostPort":1,"containerPort":1,"hostIP":"0.0.0.0"},{"hostPort":1,"containerPort":1,"hostIP":"192.0.2.1"}]`,
			types.ErrInvalidNetworkConfig, []string{"asked for twice", "0.0.0.0:1"}},
		{"every address and every IPv6 one", `[{"hostPort":1,"containerPort":1,"hostIP":"::"},{"hostPort":1,"containerPort":1}]`,
			types.ErrInvalidNetworkConfig, []string{"asked for twice", "[::]:1"}},
		{"a key in two spellings", `[{"hostPort":1,"HostPort":2,"containerPort":1}]`, types.ErrInvalidNetworkConfig, []string{first + ".HostPort", "twice", "hostPort"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parsePorts(tt.in)
			unit.RequireError(t, err, tt.code, tt.texts...)
		})
	}
}

// Mappings go to the supervisor and into records as JSON.
func TestPortMappingsSurviveJSON(t *testing.T) {
	want, err := parsePorts(`[{"hostPort":1,"containerPort":2},{"hostPort":3,"containerPort":4,"protocol":"udp","hostIP":"fe80::1%eth0"},
		{"hostPort":5,"containerPort":6,"protocol":"sctp","hostIP":"0.0.0.0"}]`)
	require.NoError(t, err)
	b, err := json.Marshal(want)
	require.NoError(t, err)
	var got []conf.PortMapping
	require.NoError(t, json.Unmarshal(b, &got))
	require.Equal(t, want, got)
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]string{
		"8080":                      "*:8080->0/tcp",
		"8080:80":                   "*:8080->80/tcp",
		"8080:80/UDP":               "*:8080->80/udp",
		"*:8080->80/tcp":            "*:8080->80/tcp",
		"127.0.0.1:8080":            "127.0.0.1:8080->0/tcp",
		"127.0.0.1:8080:80/sctp":    "127.0.0.1:8080->80/sctp",
		"[::1]:5353:53/udp":         "[::1]:5353->53/udp",
		"[fe80::1%eth0]:5353->53":   "[fe80::1%eth0]:5353->53/tcp",
		"[::ffff:192.0.2.1]:65535":  "192.0.2.1:65535->0/tcp",
		"0.0.0.0:1:65535/tcp":       "0.0.0.0:1->65535/tcp",
		"127.0.0.1:8080->80/tcp":    "127.0.0.1:8080->80/tcp",
		"[2001:db8::1]:8080:80/tcp": "[2001:db8::1]:8080->80/tcp",
	} {
		m, err := conf.ParsePort(text)
		require.NoError(t, err, text)
		require.Equal(t, want, m.String(), text)
	}
	for _, text := range []string{
		"", "0", "65536", "-1", "http", "80:", ":80", "80:80:80", "1.2.3:80", "::1:80", "[::1]80", "[::1:80", "80/quic", "80:0", "224.0.0.1:80",
		"80 ", "+80", "127.0.0.1", "127.0.0.1:", "0x50",
	} {
		_, err := conf.ParsePort(text)
		require.Error(t, err, text)
	}
}
