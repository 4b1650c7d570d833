package bridge

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func asking(ips ...string) func(*conf.Attachment) {
	return func(a *conf.Attachment) {
		for _, ip := range ips {
			addr := netip.MustParseAddr(ip)
			a.IPs = append(a.IPs, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
}

func TestAddressesAskedFor(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	a := l.join(t, n, "a", asking("fd88::77", "10.88.5.77"))
	require.Equal(t, []string{"10.88.5.77", "fd88::77"}, []string{a.ip(4), a.ip(6)})
	for name, c := range map[string]struct {
		ips  []string
		want string
	}{
		"taken":           {[]string{"10.88.5.77"}, "address 10.88.5.77 was asked for and belongs to container a, interface eth0; ask for another one of 10.88.5.0/24"},
		"taken in IPv6":   {[]string{"10.88.5.78", "fd88::77"}, "address fd88::77 was asked for and belongs to container a"},
		"the gateway":     {[]string{"10.88.5.1"}, "address 10.88.5.1 was asked for and is the gateway's"},
		"the network":     {[]string{"10.88.5.0"}, "address 10.88.5.0 was asked for and stands for all of 10.88.5.0/24"},
		"broadcast":       {[]string{"10.88.5.255"}, "stands for all of"},
		"another network": {[]string{"10.99.5.7"}, "address 10.99.5.7 was asked for, but the network has [10.88.5.0/24 fd88::/64]"},
		"two of a family": {[]string{"10.88.5.7", "10.88.5.8"}, "addresses 10.88.5.7 and 10.88.5.8 were both asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, l.addFails(t, newMember(t, n, "b", asking(c.ips...))).Error(), c.want)
		})
	}
	require.Contains(t, l.addFails(t, newMember(t, n, "b", func(a *conf.Attachment) { a.MAC = "01:00:5e:00:00:01" })).Error(), "MAC address")
}

// A network of two addresses: the third container gets an error that says so, an
// address comes back with DEL, and a late DEL does not take it from its new owner.
func TestAddressesEnd(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/30", ""))
	a := l.join(t, n, "a")
	require.Equal(t, "10.88.5.2", a.ip(4))
	err := l.addFails(t, newMember(t, n, "b"))
	require.Contains(t, err.Error(), `network "web": no address of 10.88.5.0/30 is free, 1 are given out (`+l.dir+`/web); remove containers, let ambi gc take away`)
	l.del(t, a, a.result)
	c := l.join(t, n, "c")
	require.Equal(t, "10.88.5.2", c.ip(4))
	l.del(t, a, a.result)
	require.NoError(t, l.check(t, c))
	require.NotEmpty(t, connect(t, c.space, serve(t, l.client, "tcp", "198.51.100.2:0")))
}

// The store is host-local's: each reads what the other one wrote.
func TestTheStoreIsHostLocals(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", ""))
	require.NoError(t, os.MkdirAll(filepath.Join(l.dir, "web"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "web", "10.88.5.2"), []byte("elsewhere\r\neth3"), 0o600))
	a := l.join(t, n, "a")
	require.Equal(t, "10.88.5.3", a.ip(4))
	content, err := os.ReadFile(filepath.Join(l.dir, "web", "10.88.5.3"))
	require.NoError(t, err)
	require.Equal(t, "a\r\neth0", string(content))
	l.on(t, n, func() {
		holders, err := n.Holders(patience(t))
		require.NoError(t, err)
		require.ElementsMatch(t, []conf.Key{{Network: "web", ContainerID: "elsewhere", IfName: "eth3"}, a.request.Key}, holders)
	})
	if _, err := os.Stat(tools + "/host-local"); err == nil {
		config := `{"cniVersion": "1.1.0", "name": "web", "type": "host-local", "ipam": {"type": "host-local", "dataDir": "` + l.dir + `", "ranges": [[{"subnet": "10.88.5.0/29"}]]}}`
		require.Contains(t, string(l.plugin(t, "/none", "ADD", config)), "10.88.5.4/29")
		require.Equal(t, "10.88.5.5", l.join(t, n, "b").ip(4))
		l.plugin(t, "/none", "DEL", config)
		require.Equal(t, "10.88.5.6", l.join(t, n, "c").ip(4), "what was let go stays free for as long as may be")
	}
	// A file that a killed host-local left empty is nobody's, and goes with the DEL that
	// knows the address.
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "web", "10.88.5.3"), nil, 0o600))
	require.ErrorContains(t, l.check(t, a), "address 10.88.5.3 is not written down as the container's")
	l.del(t, a, a.result)
	require.NoFileExists(t, filepath.Join(l.dir, "web", "10.88.5.3"))
}
