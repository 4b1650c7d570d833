package install

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWithAmbiAndWithout(t *testing.T) {
	const portmap = `{"type" : "portmap", "snat": true, "backend":"nftables", "conditionsV4": ["a<b&c"], "capabilities": {"portMappings": true}}`
	for name, c := range map[string]struct{ text, want string }{
		"portmap": {
			`{"name": "a", "x": 1.50, "plugins": [{"type": "bridge", "mtu": 9007199254740993}, ` + portmap + `, {"type": "tuning"}], "y": null}`,
			`{"name": "a", "x": 1.50, "plugins": [{"type": "bridge", "mtu": 9007199254740993}, {"ambi/replaces": ` + portmap + `, "type": "ambi", "capabilities": {"portMappings":true}, "snat":true,"backend":"nftables"}, {"type": "tuning"}], "y": null}`,
		},
		"none": {
			`{"plugins":[{"type":"ptp"}]}`,
			`{"plugins":[{"type":"ptp"},{"ambi/replaces": null, "type": "ambi", "capabilities": {"portMappings": true}}]}`,
		},
		"the key twice, in capitals": { // the last one counts, as for encoding/json
			`{"plugins":[{"type":"no"}],"Plugins":[{"type":"ptp"}]}`,
			`{"plugins":[{"type":"no"}],"Plugins":[{"type":"ptp"},{"ambi/replaces": null, "type": "ambi", "capabilities": {"portMappings": true}}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := parseList("x", []byte(c.text))
			require.NoError(t, err)
			require.False(t, l.has("ambi"))
			edited := l.withAmbi()
			require.Equal(t, squeezed(c.want), squeezed(string(edited)))
			l, err = parseList("x", edited)
			require.NoError(t, err)
			require.True(t, l.hasOurs())
			require.False(t, l.isMarked())
			require.Equal(t, squeezed(c.text), squeezed(string(l.without())))
		})
	}
}

// squeezed is a text without white space.
func squeezed(text string) string { return strings.Join(strings.Fields(text), "") }

func TestParseListRefuses(t *testing.T) {
	for text, why := range map[string]string{
		``: "not one JSON object", `[]`: "not one JSON object", `{"plugins":[{"type":"a"}]} {}`: "not one JSON object", `{"plugins":[{"type":"a"}]`: "EOF",
		`{"plugins":[]}`: "no plugins", `{"name":"a"}`: "no plugins", `{"type":"bridge"}`: "no plugins", `{"plugins":{}}`: "cannot unmarshal", `{"plugins":[{"type":"a"}],"name":1}`: "cannot unmarshal",
	} {
		_, err := parseList("f.conflist", []byte(text))
		require.ErrorContains(t, err, why, text)
		require.ErrorContains(t, err, "f.conflist")
	}
}

func TestPodCIDR(t *testing.T) {
	cidrs, err := ParsePodCIDR(" 10.244.1.7/24,\nfd00:1::/64 ")
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}, cidrs)
	printed, err := ParsePodCIDR(`["10.244.1.7/24","fd00:1::/64"]` + "\n") // by kubectl
	require.NoError(t, err)
	require.Equal(t, cidrs, printed)
	for _, bad := range []string{"", ",", "[]", "10.244.1.0", "10.1.0.0/24,10.2.0.0/24", "none"} {
		_, err := ParsePodCIDR(bad)
		require.ErrorContains(t, err, "pod CIDR", bad)
	}
	text, err := WithPodCIDR("x", []byte(`{"plugins":[{"type":"ambi"},{"type":"ambi","bridge":{"subnet":"10.9.0.0/24","mtu":1400}},{"type":"tuning"}]}`), cidrs)
	require.NoError(t, err)
	require.JSONEq(t, `{"plugins":[{"type":"ambi","bridge":{"subnet":"10.244.1.0/24","subnet6":"fd00:1::/64"}},{"type":"ambi","bridge":{"subnet":"10.9.0.0/24","subnet6":"fd00:1::/64","mtu":1400}},{"type":"tuning"}]}`, string(text))
	for _, other := range []string{`{"type":"ambi","delegates":[{"type":"bridge"}]}`, `{"type":"ambi","delegatesFrom":"web"}`, `{"type":"bridge"}`} {
		_, err = WithPodCIDR("x", []byte(`{"plugins":[`+other+`]}`), cidrs)
		require.ErrorContains(t, err, "has no built-in network of ambi", other)
	}
}

func FuzzList(f *testing.F) {
	for _, text := range []string{`{"plugins":[{"type":"a"}]}`, `{"name":"a","plugins":[{"type":"portmap","snat":true},1,null,"x"]}`, `{"plugins":[{"type":"ambi","ambi/replaces":7}]}`, `{"PLUGINS":[{}],"plugins":[[]]}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := parseList("x", text)
		if err != nil || l.has("ambi") {
			return
		}
		edited, err := parseList("x", l.withAmbi())
		require.NoError(t, err)
		require.True(t, edited.has("ambi"))
		require.True(t, edited.hasOurs())
		back, err := parseList("x", edited.without())
		require.NoError(t, err)
		require.Len(t, back.plugins, len(l.plugins))
		for i, raw := range l.plugins {
			require.Equal(t, string(raw), string(back.plugins[i]))
		}
		marked, err := parseList("x", l.marked())
		require.NoError(t, err)
		require.True(t, marked.isMarked())
	})
}
