package names

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambi-cni/ambi/conf"
)

// of is a member for tests: its addresses with prefix lengths, then its names.
func of(network, id, domain string, addresses []string, names ...string) member {
	m := member{Key: conf.Key{Network: network, ContainerID: id, IfName: "eth0"}, network: network, names: names, domain: domain}
	for _, a := range addresses {
		m.addresses = append(m.addresses, netip.MustParsePrefix(a))
	}
	return m
}

// world has two networks, one container in both, and one subnet in both.
func world() *directory {
	return newDirectory([]member{
		of("web", "a", "example.test", []string{"10.1.0.2/24", "fd01::2/64"}, "front", "app", "a", "www.shop.example"),
		of("web", "b", "example.test", []string{"10.1.0.3/24"}, "back", "app", "b"),
		of("Data", "b", "", []string{"10.1.0.3/24"}, "db", "b"),
		of("Data", "c", "", []string{"10.1.0.4/24"}, "store", "c", "front"),
	})
}

func TestAnswers(t *testing.T) {
	d := world()
	a, b, c := d.askers[netip.MustParseAddr("10.1.0.2")]["web"], d.askers[netip.MustParseAddr("10.1.0.3")]["web"], d.askers[netip.MustParseAddr("10.1.0.4")]["Data"]
	const (
		nothing = "" // NOERROR without data
		absent  = "NXDOMAIN"
		foreign = "forwarded"
	)
	for _, x := range []struct {
		who  *asker
		name string
		kind dnsmessage.Type
		want string
	}{
		{a, "back", dnsmessage.TypeA, "10.1.0.3"},
		{a, "back", dnsmessage.TypeAAAA, nothing},
		{a, "back", dnsmessage.TypeMX, nothing},
		{a, "front", dnsmessage.TypeAAAA, "fd01::2"},
		{a, "front", dnsmessage.TypeALL, "10.1.0.2 fd01::2"},
		{a, "back.web", dnsmessage.TypeA, "10.1.0.3"},
		{a, "back.example.test", dnsmessage.TypeA, "10.1.0.3"},
		{a, "back.example.test", dnsmessage.TypeTXT, nothing},
		{a, "www.shop.example", dnsmessage.TypeA, "10.1.0.2"},
		{a, "www.shop.example", dnsmessage.Type(65), nothing},
		{a, "www.shop.example.web", dnsmessage.TypeA, "10.1.0.2"},
		{a, "shop.example.web", dnsmessage.TypeA, nothing},
		{a, "shop.example", dnsmessage.TypeA, foreign},
		{a, "example", dnsmessage.TypeA, nothing},
		{a, "nobody", dnsmessage.TypeA, absent},
		{a, "nobody", dnsmessage.TypeMX, absent},
		{a, "com", typeDS, foreign},
		{a, "", dnsmessage.TypeNS, foreign},
		{a, "nobody.web", dnsmessage.TypeA, absent},
		{a, "a.b.example.test", dnsmessage.TypeA, absent},
		{a, "example.test", dnsmessage.TypeA, nothing},
		{a, "web", dnsmessage.TypeA, nothing},
		{a, "example.org", dnsmessage.TypeA, foreign},
		{a, "web.example.org", dnsmessage.TypeA, foreign},

		// Names of other networks are nobody's here.
		{a, "db", dnsmessage.TypeA, absent},
		{a, "store", dnsmessage.TypeA, absent},
		{a, "store.data", dnsmessage.TypeA, foreign},
		{c, "back", dnsmessage.TypeA, absent},
		{c, "front", dnsmessage.TypeA, "10.1.0.4"},
		{c, "back.example.test", dnsmessage.TypeA, foreign},
		// Who is in both has the names of both, and first those of where it asks.
		{b, "store", dnsmessage.TypeA, "10.1.0.4"},
		{b, "front", dnsmessage.TypeA, "10.1.0.2"},
		{b, "front.data", dnsmessage.TypeA, "10.1.0.4"},
		{b, "front.web", dnsmessage.TypeA, "10.1.0.2"},
		{b, "nobody.data", dnsmessage.TypeA, absent},

		{a, "3.0.1.10.in-addr.arpa", dnsmessage.TypePTR, "back app b"},
		{a, "3.0.1.10.in-addr.arpa", dnsmessage.TypeA, nothing},
		{a, "9.0.1.10.in-addr.arpa", dnsmessage.TypePTR, absent},
		{a, "4.0.1.10.in-addr.arpa", dnsmessage.TypePTR, absent},
		{a, "4.0.2.10.in-addr.arpa", dnsmessage.TypePTR, foreign},
		{a, "1.10.in-addr.arpa", dnsmessage.TypeSOA, foreign},
		{a, "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", dnsmessage.TypePTR, "front app a www.shop.example"},
		{a, "x.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", dnsmessage.TypePTR, foreign},
	} {
		r, own := x.who.answer([]byte(x.name), x.kind)
		got := foreign
		if own {
			got = text(r)
		}
		require.Equal(t, x.want, got, "%s asks for %s %s", x.who.ContainerID, x.name, x.kind)
	}
}

func text(r reply) (s string) {
	if r.code == dnsmessage.RCodeNameError {
		return "NXDOMAIN"
	}
	for _, a := range r.addresses {
		s += " " + a.String()
	}
	for _, n := range r.names {
		s += " " + n
	}
	return s[min(len(s), 1):]
}

// TestTurns: each address of an alias is the first one in its turn, also where A and AAAA
// are asked in pairs.
func TestTurns(t *testing.T) {
	d := newDirectory([]member{
		of("web", "a", "", []string{"10.1.0.2/24", "fd01::2/64"}, "app"),
		of("web", "b", "", []string{"10.1.0.3/24", "fd01::3/64"}, "app"),
		of("web", "c", "", []string{"10.1.0.4/24", "fd01::4/64"}, "app"),
	})
	a := d.askers[netip.MustParseAddr("10.1.0.2")]["web"]
	seen := map[netip.Addr]int{}
	for range 9 {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
			r, own := a.answer([]byte("app"), kind)
			require.True(t, own)
			require.Len(t, r.addresses, 3)
			require.Len(t, slices.Compact(slices.SortedFunc(slices.Values(r.addresses), netip.Addr.Compare)), 3)
			seen[r.addresses[0]]++
		}
	}
	for _, n := range seen {
		require.Equal(t, 3, n)
	}
}

func TestPossible(t *testing.T) {
	long := "a123456789b123456789c123456789d123456789e123456789f123456789g12"
	for name, want := range map[string]bool{
		"web": true, "my_app-1": true, "a.b": true, "bücher": true, long: true, "": false, "a..b": false, ".a": false, "a.": false, long + "3": false,
		long + "." + long + "." + long + "." + long: false,
	} {
		require.Equal(t, want, Possible(name), name)
	}
}
