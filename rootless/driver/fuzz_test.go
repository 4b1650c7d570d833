package driver

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// FuzzAPIReply: whatever slirp4netns answers, the entries are compared with a port
// and nothing panics; an error is never empty.
func FuzzAPIReply(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", `{"return":{}}`, `{"return":{"id":1}}`, `{"error":{"desc":"bad request: add_hostfwd"}}`, `{"error":{}}`, `{"return":{"entries":[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080}]}}`,
		`{"entries":[{"id":1,"proto":"udp","host_addr":"127.0.0.1","host_port":53,"guest_addr":"10.0.2.100","guest_port":53}]}`, `{"return":null,"entries":null}`, `{"entries":[{"host_port":-1}]}`,
	} {
		f.Add([]byte(s))
	}
	port := conf.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: conf.TCP}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeAPIReply(b)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		for _, e := range r.entries() {
			if e.matches(port) {
				require.Equal(t, "0.0.0.0", e.HostAddr)
			}
		}
	})
}

// FuzzHelp: whatever a program prints on --help, each option is known to be there or
// not, and one that is there is in the text.
func FuzzHelp(f *testing.F) {
	f.Add("--cidr=CIDR  specify network address\n  --enable-ipv6\n--mtu=MTU")
	f.Add("--enable-ipv6-nothing")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		known := parseHelp(text)
		require.Len(t, known, len(features))
		for name, there := range known {
			require.True(t, !there || strings.Contains(text, "--"+name))
		}
	})
}

// FuzzSays: whatever a driver prints, in whatever pieces, is logged line by line, and the last of it
// is at hand, in bounds: a container may have it say a lot.
func FuzzSays(f *testing.F) {
	f.Add([]byte("a line\nWARNING: Support for seccomp is experimental\nthe reason"), uint(3))
	f.Add([]byte("Failed to send 17 bytes to syslog\n\n\n"), uint(1))
	f.Add(bytes.Repeat([]byte("x"), 10_000), uint(4095))
	f.Fuzz(func(t *testing.T, said []byte, piece uint) {
		var log bytes.Buffer
		printed := &tail{name: "slirp4netns", log: slog.New(slog.NewTextHandler(&log, nil))}
		size := int(piece%5000) + 1
		for part := range slices.Chunk(said, size) {
			n, err := printed.Write(part)
			require.NoError(t, err)
			require.Equal(t, len(part), n)
			require.LessOrEqual(t, len(printed.part), 4096)
		}
		require.LessOrEqual(t, len(printed.lines), tailLines)
		require.NotEmpty(t, printed.last())
		for line := range strings.Lines(log.String()) {
			require.Contains(t, line, "msg=slirp4netns says=")
		}
	})
}
