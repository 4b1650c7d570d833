package conf

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestDelegatesFrom shows the two forms of the key delegates, and what else may
// not be there.
func TestDelegatesFrom(t *testing.T) {
	parse := func(members string) (*NetConf, error) {
		return Parse([]byte(`{"name":"web","type":"ambi",` + members + `}`))
	}
	for _, ref := range []string{"lab", "a-b.c_1", "/etc/cni/net.d/lab.conflist"} {
		n, err := parse(`"delegates":"` + ref + `"`)
		require.NoError(t, err)
		require.Equal(t, ref, n.DelegatesFrom)
		require.Nil(t, n.Delegates)
	}
	for _, bad := range []string{`""`, `"net.d/lab"`, `"./lab"`, `"-lab"`, `"/lab\u0000"`, `17`, `{}`, `true`} {
		_, err := parse(`"delegates":` + bad)
		require.ErrorContains(t, err, "the name of a conflist in /etc/cni/net.d, or the absolute path of one", bad)
	}
	_, err := parse(`"delegates":[{"type":"bridge"},{"type":"ambi"}]`)
	require.ErrorContains(t, err, "ambi cannot be a delegate of itself")
}

// TestDelegateTimeout shows how the time of a delegate is written.
func TestDelegateTimeout(t *testing.T) {
	for text, want := range map[string]time.Duration{`"30s"`: 30 * time.Second, `"1m30s"`: 90 * time.Second, `""`: 0, `null`: 0} {
		n, err := Parse([]byte(`{"name":"web","delegateTimeout":` + text + `}`))
		require.NoError(t, err)
		require.Equal(t, want, n.DelegateTimeout)
	}
	for _, bad := range []string{`30`, `"30"`, `"-1s"`, `"0s"`, `"soon"`, `{}`} {
		_, err := Parse([]byte(`{"name":"web","delegateTimeout":` + bad + `}`))
		require.ErrorContains(t, err, "delegateTimeout", bad)
		require.ErrorContains(t, err, "such as 30s", bad)
	}
}

// TestDelegatesOf shows a conflist becoming the delegates, byte for byte.
func TestDelegatesOf(t *testing.T) {
	n, err := Parse([]byte(`{"name":"web","type":"ambi","delegates":"lab"}`))
	require.NoError(t, err)
	l, err := ParseConflist("lab.conflist", []byte(`{"cniVersion":"0.4.0","name":"lab","disableCheck":"true","disableGC":true,"own":{},
 "plugins":[{"type":"bridge", "big":12345678901234567890},{"type":"firewall"}]}`))
	require.NoError(t, err)
	delegates, err := n.DelegatesOf(l)
	require.NoError(t, err)
	require.Len(t, delegates, 2)
	require.Equal(t, `{"type":"bridge", "big":12345678901234567890}`, string(delegates[0].Raw))
	require.Nil(t, n.Delegates, "what was parsed is only read")
	require.True(t, l.DisableCheck)
	require.True(t, l.DisableGC)
	require.False(t, l.OnlyInlined)

	for bad, says := range map[string]string{
		`{`:                                    "lab.conflist is not JSON",
		`[]`:                                   "it is a JSON object",
		`{"plugins":1}`:                        "an array of plugin configurations",
		`{"plugins":[],"disableGC":"perhaps"}`: "it is true or false",
	} {
		_, err := ParseConflist("lab.conflist", []byte(bad))
		require.ErrorContains(t, err, says, bad)
	}
	for bad, says := range map[string]string{
		`{"plugins":[]}`:                  "the conflist has no plugins",
		`{}`:                              "the conflist has no plugins",
		`{"plugins":[{"type":"ambi"}]}`:   "ambi cannot be a delegate of itself",
		`{"plugins":[{"name":"bridge"}]}`: "delegates(lab).plugins[0].type",
	} {
		l, err := ParseConflist("lab.conflist", []byte(bad))
		require.NoError(t, err)
		_, err = n.DelegatesOf(l)
		require.ErrorContains(t, err, says, bad)
	}
}
