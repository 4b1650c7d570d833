package delegate

import (
	"encoding/json"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestSplice(t *testing.T) {
	cut := []string{"name", "cniVersion", "prevResult", "runtimeConfig"}
	add := []member{{"name", json.RawMessage(`"n"`)}}
	for _, test := range []struct{ name, in, want string }{
		{"empty", `{}`, `{"name":"n"}`},
		{"blanks only", " {\n} ", `{"name":"n"}`},
		{"kept as it is", `{"type":"x"}`, `{"type":"x","name":"n"}`},
		{"integer over 2^53", `{"a":9007199254740993,"b":-18446744073709551617}`, `{"a":9007199254740993,"b":-18446744073709551617,"name":"n"}`},
		{"numbers in any form", `{"a":1.0,"b":1e400,"c":-0}`, `{"a":1.0,"b":1e400,"c":-0,"name":"n"}`},
		{"null", `{"a":null,"b":[null]}`, `{"a":null,"b":[null],"name":"n"}`},
		{"nesting", `{"a":{"name":"inner","b":[{"prevResult":{}}]}}`, `{"a":{"name":"inner","b":[{"prevResult":{}}]},"name":"n"}`},
		{"blanks", "{ \"a\" : [ 1 , 2 ] ,\n\t\"b\" : 3 }", "{ \"a\" : [ 1 , 2 ] ,\n\t\"b\" : 3 ,\"name\":\"n\"}"},
		{"order", `{"z":1,"a":2,"m":3}`, `{"z":1,"a":2,"m":3,"name":"n"}`},
		{"duplicate keys", `{"a":1,"a":2}`, `{"a":1,"a":2,"name":"n"}`},
		{"escapes", `{"a":"<&>\u00e9\/","é":"\ud83d"}`, `{"a":"<&>\u00e9\/","é":"\ud83d","name":"n"}`},
		{"separators in texts", `{"a":",}","b":"{","name":"},"}`, `{"a":",}","b":"{","name":"n"}`},
		{"replaced first", `{"name":"old","a":1}`, `{"a":1,"name":"n"}`},
		{"replaced in the middle", `{"a":1,"cniVersion":"0.1.0","b":2}`, `{"a":1,"b":2,"name":"n"}`},
		{"replaced last", `{"a":1,"runtimeConfig":{"x":[1]}}`, `{"a":1,"name":"n"}`},
		{"all replaced", `{"name":"a","prevResult":null}`, `{"name":"n"}`},
		{"replaced twice", `{"name":"a","a":1,"name":"b"}`, `{"a":1,"name":"n"}`},
		{"replaced in disguise", `{"n\u0061me":"a","a":1}`, `{"a":1,"name":"n"}`},
		{"another case is another key, and ours comes after it", `{"Name":"a"}`, `{"Name":"a","name":"n"}`},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", "{\"a\":\"\xff\",\"name\":\"n\"}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := splice([]byte(test.in), cut, add)
			require.NoError(t, err)
			require.Equal(t, test.want, string(got))
			require.True(t, json.Valid(got))
		})
	}
}

func TestSpliceRefusesWhatIsNoObject(t *testing.T) {
	for _, in := range []string{``, `null`, `[]`, `"a"`, `1`, `{`, `{"a"}`, `{"a":1}x`, `{"a":1,}`} {
		_, err := splice([]byte(in), nil, nil)
		require.Error(t, err, in)
	}
}

// FuzzSplice checks that whatever is not replaced stays, to the byte.
func FuzzSplice(f *testing.F) {
	f.Add(`{"a":1,"name":"x" , "b":[{"name":2}]}`)
	f.Add(`{"a":"}","":{}}`)
	f.Fuzz(func(t *testing.T, in string) {
		before, err := split([]byte(in))
		if err != nil {
			return
		}
		out, err := splice([]byte(in), []string{"name"}, []member{{"name", json.RawMessage(`1`)}})
		require.NoError(t, err)
		after, err := split(out)
		require.NoError(t, err)
		var want []string
		for _, p := range before {
			if p.key != "name" {
				want = append(want, string(p.text))
			}
		}
		var got []string
		for _, p := range after[:len(after)-1] {
			got = append(got, string(p.text))
		}
		require.Equal(t, want, got)
		require.Equal(t, "name", after[len(after)-1].key)
	})
}

func TestStdin(t *testing.T) {
	result := &types100.Result{CNIVersion: "1.1.0", Interfaces: []*types100.Interface{{Name: "eth0", Mtu: 1500}}}
	c := &Chain{Attachment: &conf.Attachment{NetConf: &conf.NetConf{
		Name: "net", CNIVersion: "1.1.0",
		Raw: json.RawMessage(`{"type":"ambi","args":{"cni":{"ips":["10.0.0.5"]}}}`),
		RuntimeConfig: conf.RuntimeConfig{Raw: map[string]json.RawMessage{
			"portMappings": json.RawMessage(`[{"hostPort":8080,"x":9007199254740993}]`),
			"mac":          json.RawMessage(`"02:00:00:00:00:01"`),
			"zz":           json.RawMessage(`"<>"`),
		}},
	}}}
	for _, test := range []struct {
		name, raw, version string
		r                  request
		want               string
	}{
		{"ADD", `{"type":"x","args":{}}`, "1.1.0", request{verb: "ADD"},
			`{"type":"x","args":{},"name":"net","cniVersion":"1.1.0"}`},
		{"share of runtimeConfig", `{"type":"x","args":{},"capabilities":{"zz":true,"portMappings":true,"mac":false}}`, "1.0.0", request{verb: "ADD"},
			`{"type":"x","args":{},"capabilities":{"zz":true,"portMappings":true,"mac":false},"name":"net","cniVersion":"1.0.0","runtimeConfig":{"portMappings":[{"hostPort":8080,"x":9007199254740993}],"zz":"<>"}}`},
		{"args of the network", `{"type":"x"}`, "1.1.0", request{verb: "ADD"},
			`{"type":"x","name":"net","cniVersion":"1.1.0","args":{"cni":{"ips":["10.0.0.5"]}}}`},
		{"prevResult", `{"type":"x","args":{}}`, "1.1.0", request{verb: "ADD", prev: result},
			`{"type":"x","args":{},"name":"net","cniVersion":"1.1.0","prevResult":{"cniVersion":"1.1.0","interfaces":[{"mtu":1500,"name":"eth0"}]}}`},
		{"prevResult of an older version", `{"type":"x","args":{},"prevResult":{"old":1}}`, "0.4.0", request{verb: "DEL", prev: result},
			`{"type":"x","args":{},"name":"net","cniVersion":"0.4.0","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"}],"dns":{}}}`},
		{"DEL of before 0.4.0 has none", `{"type":"x","args":{}}`, "0.3.1", request{verb: "DEL", prev: result},
			`{"type":"x","args":{},"name":"net","cniVersion":"0.3.1"}`},
		{"STATUS", `{"type":"x","capabilities":{"mac":true}}`, "1.1.0", request{verb: "STATUS"},
			`{"type":"x","capabilities":{"mac":true},"name":"net","cniVersion":"1.1.0"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := conf.ParseDelegate("delegates", json.RawMessage(test.raw))
			require.NoError(t, err)
			got, err := c.stdin(d, test.r, test.version)
			require.NoError(t, err)
			require.Equal(t, test.want, string(got))
		})
	}
}

func TestDecodeResult(t *testing.T) {
	for _, test := range []struct{ name, out, asked, address string }{
		{"same version", `{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}`, "1.1.0", "10.0.0.2/24"},
		{"older version", `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}`, "0.4.0", "10.0.0.2/24"},
		{"oldest version", `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`, "0.2.0", "10.0.0.2/24"},
		{"no version", `{"ips":[{"version":"4","address":"10.0.0.2/24"}]}`, "0.3.1", "10.0.0.2/24"},
		{"empty version", `{"cniVersion":"","ips":[{"address":"10.0.0.2/24"}]}`, "1.0.0", "10.0.0.2/24"},
		{"null version", "\n {\"cniVersion\":null,\"ips\":[{\"address\":\"10.0.0.2/24\"}]}\n", "1.0.0", "10.0.0.2/24"},
		{"nothing to say", `{}`, "1.1.0", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			result, err := ParseResult([]byte(test.out), test.asked)
			require.NoError(t, err)
			require.Equal(t, "1.1.0", result.CNIVersion)
			if test.address != "" {
				require.Equal(t, test.address, result.IPs[0].Address.String())
			}
		})
	}
	for _, out := range []string{"", "  \n", "null", "[]", `"x"`, `{"cniVersion":"1.1.0","ips":[`, "oops", `{"cniVersion":"9.9.9"}`, `{"cniVersion":7}`, `{"ips":"x"}`} {
		t.Run("refused: "+out, func(t *testing.T) {
			_, err := ParseResult([]byte(out), "1.1.0")
			requireCode(t, err, 6)
		})
	}
}
