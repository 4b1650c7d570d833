package driver

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

func TestDecodeAPIReply(t *testing.T) {
	entry := apiEntry{ID: 1, Proto: "tcp", HostAddr: "0.0.0.0", HostPort: 8080, GuestAddr: "10.0.2.100", GuestPort: 80}
	const entryJSON = `{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`
	for _, tt := range []struct {
		in   string
		want apiReply
	}{
		{`{"return":{"id":7}}`, apiReply{Return: &apiReturn{ID: 7}}},
		{`{"return":{}}` + "\n", apiReply{Return: &apiReturn{}}},
		{`{"return":{"entries":[` + entryJSON + `]}}`, apiReply{Return: &apiReturn{Entries: []apiEntry{entry}}}},
		{`{"entries":[` + entryJSON + `]}`, apiReply{Entries: []apiEntry{entry}}},
		{`{"entries":[],"new":1}`, apiReply{Entries: []apiEntry{}}},
	} {
		got, err := decodeAPIReply([]byte(tt.in))
		require.NoError(t, err, tt.in)
		require.Equal(t, tt.want, *got, tt.in)
	}
	_, err := decodeAPIReply([]byte(`{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}`))
	require.EqualError(t, err, "bad request: add_hostfwd: slirp_add_hostfwd failed")
	for _, garbage := range []string{"", "no", `[]`, `{"return":1}`, `{"entries":[{"id":"x"}]}`, strings.Repeat("x", 1<<16)} {
		_, err := decodeAPIReply([]byte(garbage))
		require.ErrorContains(t, err, "its API answered")
		require.Less(t, len(err.Error()), 500, "a long answer is cut")
	}
}

// fakeAPI is slirp4netns as its API shows it. A host port 1 cannot be bound.
type fakeAPI struct {
	t       *testing.T
	bare    bool // list_hostfwd without "return", as 1.2.0 answers
	mu      sync.Mutex
	entries []apiEntry
	ids     int
}

func (f *fakeAPI) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(conn) // until the end of the caller's side
		_, _ = conn.Write([]byte(f.answer(b)))
		conn.Close()
	}
}

func (f *fakeAPI) answer(b []byte) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var r struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	var e apiEntry
	if json.Unmarshal(b, &r) != nil || (r.Arguments != nil && json.Unmarshal(r.Arguments, &e) != nil) {
		return `{"error":{"desc":"bad request"}}`
	}
	switch r.Execute {
	case "list_hostfwd":
		list, _ := json.Marshal(map[string]any{"entries": f.entries})
		if f.bare {
			return string(list)
		}
		return `{"return":` + string(list) + `}`
	case "add_hostfwd":
		for _, field := range []string{"proto", "host_addr", "host_port", "guest_addr", "guest_port"} {
			if !strings.Contains(string(r.Arguments), `"`+field+`"`) {
				f.t.Errorf("request without %s: %s", field, b)
			}
		}
		if e.HostPort == 1 {
			return `{"error":{"desc":"slirp_add_hostfwd failed"}}`
		}
		f.ids++
		e.ID = f.ids
		f.entries = append(f.entries, e)
		return `{"return":{"id":1}}`
	case "remove_hostfwd":
		for i := range f.entries {
			if f.entries[i].ID == e.ID {
				f.entries = append(f.entries[:i], f.entries[i+1:]...)
				return `{"return":{}}`
			}
		}
	}
	return `{"error":{"desc":"bad request"}}`
}

// longFolder is a folder whose sockets have names too long for bind(2).
func longFolder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir
}

func TestSlirpAPI(t *testing.T) {
	for _, bare := range []bool{false, true} {
		path := filepath.Join(longFolder(t), "x.api")
		name, folder, err := record.SocketName(path)
		require.NoError(t, err)
		defer folder.Close()
		l, err := net.Listen("unix", name)
		require.NoError(t, err)
		defer l.Close()
		fake := &fakeAPI{t: t, bare: bare}
		go fake.serve(l)

		api := slirpAPI{path: path, guest: netip.MustParseAddr("10.0.2.100")}
		web := conf.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: conf.TCP}
		dns := conf.PortMapping{HostPort: 53, ContainerPort: 53, Protocol: conf.UDP, HostIP: netip.MustParseAddr("127.0.0.1")}
		require.NoError(t, api.Add(web))
		require.NoError(t, api.Add(dns))
		require.Equal(t, []apiEntry{
			{ID: 1, Proto: "tcp", HostAddr: "0.0.0.0", HostPort: 8080, GuestAddr: "10.0.2.100", GuestPort: 80},
			{ID: 2, Proto: "udp", HostAddr: "127.0.0.1", HostPort: 53, GuestAddr: "10.0.2.100", GuestPort: 53},
		}, fake.entries)
		require.NoError(t, api.Check([]conf.PortMapping{web, dns}))

		require.NoError(t, api.Remove(web))
		require.NoError(t, api.Remove(web), "a port that is not there is success")
		require.ErrorContains(t, api.Check([]conf.PortMapping{web, dns}), "*:8080->80/tcp is not published")
		require.NoError(t, api.Check([]conf.PortMapping{dns}))

		err = api.Add(conf.PortMapping{HostPort: 1, ContainerPort: 80, Protocol: conf.TCP})
		require.EqualError(t, err, "publishing *:1->80/tcp by slirp4netns: slirp_add_hostfwd failed")
	}
	err := slirpAPI{path: filepath.Join(t.TempDir(), "none.api")}.Add(conf.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: conf.TCP})
	require.ErrorContains(t, err, "its API socket")
}
