package record

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// FuzzDecode: no file makes a verb panic; what counts as a record is of an
// attachment, and is the same after it was written and read again.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", "{", `{"version":1}`, `{"version":2,"network":"web","containerID":"box","ifname":"eth0"}`,
		`{"version":1,"network":"web","containerID":"box","ifname":"eth0","state":"ready","mode":"rootless","created":"2026-01-02T03:04:05Z","netns":{"path":"/proc/1/ns/net","device":4,"inode":4026531840},"config":{"cniVersion":"1.1.0","name":"web","type":"ambi"},"supervisor":{"pid":7,"startTime":9}}`,
		`{"version":1,"network":"web","containerID":"box","ifname":"eth0","state":"adding","mode":"root","config":{"type":"ambi","name":"web","delegates":[{"type":"bridge","x":9007199254740993}]},"delegates":[{"type":"bridge"}],"result":{"cniVersion":"1.1.0"},"published":{"backend":"nftables","ips":["10.1.0.2","fd00::2%e"],"snat":true},"ports":[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":""}]}`,
		`{"version":1,"network":"web","containerID":"box","ifname":"eth0","config":"<>","ports":[{"hostIP":"fe80::1%eth0"}],"published":{"ips":[""]}}`,
		`{"version":1,"Network":"web","CONTAINERID":"box","ifName":"eth0","created":0}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err != nil {
			return
		}
		require.True(t, r.Saved())
		require.NotEmpty(t, r.ContainerID)
		if a, err := r.Attachment(); err == nil {
			require.Equal(t, r.ContainerID, a.ContainerID)
		}
		first, err := r.encode()
		require.NoError(t, err)
		again, err := decode(first)
		require.NoError(t, err, "%s", first)
		second, err := again.encode()
		require.NoError(t, err)
		require.Equal(t, string(first), string(second))
		require.True(t, json.Valid(first))
	})
}

// FuzzNames: every attachment has file names of its own, none of them longer than a
// file system allows nor outside the folder, and one that is not cut can be read
// back.
func FuzzNames(f *testing.F) {
	f.Add("web", "box", "eth0", "eth1")
	f.Add("web", "a-very-long-container-id-0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789", "eth0", "eth0")
	f.Add("a.b", "c_d", "e", "")
	f.Add("a", "b", "c@d", "d")
	f.Fuzz(func(t *testing.T, network, containerID, ifName, other string) {
		k := conf.Key{Network: network, ContainerID: containerID, IfName: ifName}
		for _, part := range []string{network, containerID, ifName, other} {
			for _, c := range part {
				if c < 0x20 || c > 0x7e || c == '@' || c == '/' {
					return // no name of any of them has it (specification section 2)
				}
			}
			if part == "" {
				return
			}
		}
		s := &Store{dir: "/run/ambi"}
		path := s.Path(k, "json")
		require.Equal(t, "/run/ambi", filepath.Dir(path))
		require.Less(t, len(filepath.Base(path)), 256-len(".tmp-0123456789"))
		different := k
		different.IfName = other
		require.Equal(t, other == ifName, path == s.Path(different, "json"))
		require.Equal(t, other == ifName, s.Path(k, "sock") == s.Path(different, "sock"))
		if back, ok := keyOf(path); ok {
			require.Equal(t, k, back)
		} else {
			require.Greater(t, len(network+containerID+ifName)+2, longestBase)
		}
	})
}

// FuzzStat: a process may call itself what it likes.
func FuzzStat(f *testing.F) {
	f.Add([]byte("7 (a) Z 1) S " + strings.Repeat("1 ", 40)))
	f.Add([]byte(""))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = parseStat(b)
		named := append(append([]byte("7 ("), bytes.ReplaceAll(b, []byte("\n"), nil)...), []byte(") S "+strings.Repeat("5 ", 18)+"4711 9 9")...)
		state, start, err := parseStat(named)
		require.NoError(t, err)
		require.Equal(t, byte('S'), state)
		require.Equal(t, uint64(4711), start)
	})
}
