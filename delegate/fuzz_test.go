package delegate

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// FuzzResult: whatever a delegate prints is a result that can be printed in every
// version, or an error of code 6.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		"", "null", "[]", "{", "{}", `{"cniVersion":"9.9.9"}`, `{"cniVersion":""}`, `{"cniVersion":1}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/x","mtu":1500}],"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.1.0.1"]}}`,
		`{"cniVersion":"0.4.0","interfaces":null,"ips":[{"version":"4","address":"10.1.0.2/24","interface":-1}],"routes":[{"dst":"::/0","gw":"fd00::1"}]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::2/64"},"dns":{}}`,
		`{"cniVersion":"1.0.0","ips":[null]}`, `{"cniVersion":"1.0.0","ips":[{}]}`, `{"cniVersion":"1.1.0","routes":[null]}`, `{"cniVersion":"1.1.0","interfaces":[null]}`,
		`{"cniVersion":"0.3.1","ips":[{"version":"6","address":"10.1.0.2/24"}]}`, `{"ip4":{}}`,
	} {
		for _, asked := range []string{"", "0.1.0", "0.4.0", "1.1.0"} {
			f.Add([]byte(s), asked)
		}
	}
	f.Fuzz(func(t *testing.T, out []byte, asked string) {
		result, err := ParseResult(out, asked)
		if err != nil {
			var e *types.Error
			require.True(t, errors.As(err, &e), "%v", err)
			require.Equal(t, types.ErrDecodingFailure, e.Code)
			require.NotEmpty(t, e.Msg)
			return
		}
		_, err = json.Marshal(result)
		require.NoError(t, err)
		for _, v := range version.All.SupportedVersions() {
			if converted, err := result.GetAsVersion(v); err == nil {
				_, err = json.Marshal(converted)
				require.NoError(t, err, v)
			}
		}
		c := &Chain{Attachment: &conf.Attachment{NetConf: &conf.NetConf{}, Key: conf.Key{ContainerID: "box", IfName: "eth0"}}}
		_ = c.trueResult(result)
	})
}

// FuzzFailure: whatever a delegate prints when it fails becomes an error with a code
// and a message.
func FuzzFailure(f *testing.F) {
	f.Add([]byte(`{"code":11,"msg":"again","details":"x"}`), []byte("said"))
	f.Add([]byte(`{"code":0}`), []byte(""))
	f.Add([]byte(`{"code":-1,"msg":""}`), []byte("\xff"))
	f.Add([]byte(`panic`), []byte(""))
	f.Add([]byte("null"), []byte("null"))
	f.Fuzz(func(t *testing.T, stdout, stderr []byte) {
		e := annotate("bridge", failure("/opt/cni/bin/bridge", errors.New("exit status 1"), stdout, stderr))
		require.NotZero(t, e.Code)
		require.Greater(t, len(e.Msg), len("bridge: "), "%q", stdout)
		_ = saysAbsent(e)
	})
}

// FuzzVersions: whatever a delegate answers to VERSION, it is asked in a version that
// both know, or not at all.
func FuzzVersions(f *testing.F) {
	for _, s := range []string{`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}`, `{"cniVersion":"0.1.0"}`, `{}`, `{"cniVersion":"1.0.0","supportedVersions":["","x","2.0.0"]}`, "null", ""} {
		f.Add([]byte(s), "1.1.0")
		f.Add([]byte(s), "0.3.1")
	}
	f.Fuzz(func(t *testing.T, out []byte, ours string) {
		info, err := (&version.PluginDecoder{}).Decode(out)
		if err != nil {
			return
		}
		if v := nearest(info.SupportedVersions(), ours); v != "" {
			require.Contains(t, info.SupportedVersions(), v)
			require.Contains(t, version.All.SupportedVersions(), v)
		}
		_ = incompatible("/opt/cni/bin/bridge", info.SupportedVersions()).Error()
	})
}

// FuzzAddresses: whatever is in host-local's files, the owner has no line end in its
// name, and an attachment gets addresses only from files that are its own.
func FuzzAddresses(f *testing.F) {
	f.Add("10.1.0.2", []byte("box\r\neth0"))
	f.Add("10.1.0.2", []byte("box\neth0\n"))
	f.Add("fd00::2", []byte(""))
	f.Add("last_reserved_ip.0", []byte("10.1.0.2"))
	f.Add("10.1.0.2", []byte("\n\n"))
	f.Add("10.1.0.2", []byte("!0")) // no container has such an ID
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		dir := t.TempDir()
		if name != filepath.Base(name) || name == "." || os.WriteFile(filepath.Join(dir, name), content, 0o600) != nil {
			return
		}
		c := &Chain{Attachment: &conf.Attachment{NetConf: &conf.NetConf{Name: "web"}, Key: conf.Key{Network: "web", ContainerID: "box", IfName: "eth0"}}}
		for _, ip := range storedIn(dir) {
			o, taken := readOwner(dir, ip)
			require.Equal(t, taken, utils.ValidateContainerID(o.containerID) == nil)
			require.NotContains(t, o.containerID, "\n")
		}
		if result := c.resultOf(dir); result != nil {
			require.Len(t, result.IPs, 1)
			ip := net.ParseIP(name)
			require.True(t, ip.Equal(result.IPs[0].Address.IP))
		}
	})
}
