package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// FuzzLogLine: any line of a log can be shown, and what slog wrote is read back.
func FuzzLogLine(f *testing.F) {
	for _, s := range []string{
		"", "=", "a=", `time=2026-01-02T03:04:05Z level=INFO msg="a \"b\"" attachment=web/box/eth0`, `msg="`, `level=ERROR msg=x err="é\x00"`, "panic: runtime error", `a b=c`, `x="1"y="2"`,
	} {
		f.Add(s, "web/box/eth0")
	}
	f.Fuzz(func(t *testing.T, line, value string) {
		_ = levelStyle(line)
		e := parseLogLine(line)
		_, err := json.Marshal(e)
		require.NoError(t, err)
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info(line, "attachment", value)
		written := parseLogLine(string(bytes.TrimSuffix(b.Bytes(), []byte("\n"))))
		require.Equal(t, line, written.Msg)
		require.Equal(t, value, written.Attrs["attachment"])
		require.Equal(t, "INFO", written.Level)
	})
}

// FuzzWrap: any file is wrapped into a conflist that ambi takes, or refused with a
// reason.
func FuzzWrap(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", `{"cniVersion":"1.0.0","name":"web","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/24"}},{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		`{"type":"bridge","name":"web"}`, `{"name":"web","plugins":[{"type":"ambi"}]}`, `{"name":"a/b","plugins":[{"type":"x"}]}`, `{"name":"web","cniVersion":"9","plugins":[{"type":"x","capabilities":{"a b":true}}],"disableCheck":"yes"}`,
		`{"name":"web","plugins":[null]}`, `{"name":"web","cniVersions":["1.0.0","1.1.0"],"plugins":[{"type":"bridge"}],"disableGC":true}`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, text []byte, keep bool) {
		path := filepath.Join(t.TempDir(), "x.conflist")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		var out bytes.Buffer
		a := &app{out: &out, errOut: io.Discard}
		if err := a.wrap(path, wrapOptions{keepPortmap: keep}); err != nil {
			require.NotEmpty(t, err.Error())
			require.Empty(t, out.String())
			return
		}
		var list wrapped
		require.NoError(t, json.Unmarshal(out.Bytes(), &list), out.String())
		require.Len(t, list.Plugins, 1)
		require.NoError(t, understood(&list))
	})
}

// FuzzArguments: whatever somebody calls a container, what is meant is among those that there are and
// has that name, or there is an error that says which are meant.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"", "box", "bo", "web/box/eth0", "//", "web/box", "\x00", "box\nbox"} {
		f.Add(s, "box", "boxer")
	}
	f.Fuzz(func(t *testing.T, asked, one, other string) {
		a := &app{out: io.Discard, errOut: io.Discard, stateDir: "/nowhere"}
		all := []*attachment{
			{Key: conf.Key{Network: "web", ContainerID: one, IfName: "eth0"}}, {Key: conf.Key{Network: "web", ContainerID: one, IfName: "eth1"}},
			{Key: conf.Key{Network: "db", ContainerID: other, IfName: "eth0"}},
		}
		found, err := a.named(all, []string{asked, asked})
		if err != nil {
			require.Empty(t, found)
			require.NotEmpty(t, err.Error())
			return
		}
		require.NotEmpty(t, found)
		for i, x := range found {
			require.True(t, strings.HasPrefix(x.ContainerID, asked) || x.String() == asked)
			require.NotContains(t, found[:i], x)
		}
	})
}
