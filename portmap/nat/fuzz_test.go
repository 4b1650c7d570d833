package nat

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// FuzzRuleset: other programs write into the same tables, so whatever iptables-save
// shows, an owner's removal is lines that iptables-restore takes for commands about
// our own chains.
func FuzzRuleset(f *testing.F) {
	f.Add(`*nat
:AMBI-DNAT - [0:0]
:AMBI-D-abc - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j AMBI-DNAT
-A AMBI-DNAT -m comment --comment "web/box/eth0" -j AMBI-D-abc
-A AMBI-D-abc -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.88.0.2:80
-A AMBI-M-abc -s 127.0.0.0/8 -d 10.88.0.2/32 -j MASQUERADE
COMMIT`, "abc")
	f.Add("-A AMBI-DNAT -j AMBI-D-", "")
	f.Add("-A AMBI-", "x")
	f.Add("-A\n:AMBI-\n-A PREROUTING -j AMBI-DNAT --dport 99999999999 -p", "y")
	f.Fuzz(func(t *testing.T, saved, owner string) {
		if strings.ContainsAny(owner, " \n\t\"") || owner == "" || strings.TrimSpace(owner) != owner {
			return // no tag has them
		}
		for _, fam := range []family{ipv4, ipv6} {
			r := parseRuleset(fam, saved)
			for _, all := range r.forwards {
				for _, fw := range all {
					require.True(t, fw.to.IsValid())
				}
			}
			for table, lines := range r.unpublication(owner) {
				require.Contains(t, []string{"nat", "raw", "filter"}, table)
				for _, line := range lines {
					require.Contains(t, line, "AMBI-")
					require.NotContains(t, line, "\n")
				}
			}
		}
	})
}

// FuzzElements: whatever the kernel answers, or has in the user data of an element,
// is read without a panic; a comment of ours is read back.
func FuzzElements(f *testing.F) {
	f.Add([]byte{}, "web/box/eth0")
	f.Add([]byte{0, 3, 'a', 0}, "")
	f.Add([]byte{1, 255, 0}, "x")
	f.Add(elementMessages(0, 0, "set", []element{{key: []byte{1, 2}, data: []byte{3}, comment: "web/box/eth0"}})[0].data, "y")
	f.Fuzz(func(t *testing.T, b []byte, owner string) {
		parseElements(b, func(e element) { _, _ = parseOwner(e.comment) })
		_ = parseComment(b)
		if len(owner) <= longestOwner && !strings.Contains(owner, "\x00") {
			require.Equal(t, owner, parseComment(commentData(owner)))
		}
	})
}

// FuzzListed: whatever the kernel lists of sockets, connections and published ports is read,
// or passed over: ports, addresses and other tables are anybody's choice.
func FuzzListed(f *testing.F) {
	socket := make([]byte, diagAnswerSize)
	socket[0], socket[5] = unix.AF_INET, 80
	f.Add(socket, uint8(unix.IPPROTO_TCP))
	f.Add([]byte(attrs(socket).bytes(diagSKV6Only, []byte{1})), uint8(unix.IPPROTO_UDP))
	tuple := attrs(nil).nest(ctaTupleIP, attrs(nil).bytes(ctaIPv4Src, []byte{10, 0, 0, 1}).bytes(ctaIPv4Dst, []byte{10, 0, 0, 2})).
		nest(ctaTupleProto, attrs(nil).bytes(ctaProtoNum, []byte{6}).bytes(ctaProtoSrcPort, []byte{0, 80}).bytes(ctaProtoDstPort, []byte{0, 80}))
	f.Add([]byte(attrs(make([]byte, headerSize)).nest(ctaTupleOrig, tuple).nest(ctaTupleReply, tuple).bytes(ctaID, []byte{1, 2, 3, 4})), uint8(0))
	f.Add(hostedKey(slot{6, netip.MustParseAddr("10.0.0.1"), 80}), uint8(0))
	f.Add(portKey(slot{6, netip.Addr{}, 80}), uint8(0))
	f.Add([]byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, proto uint8) {
		for _, fam := range families() {
			if l, ok := parseListener(fam, proto, data); ok {
				require.Equal(t, proto, l.proto)
				_ = l.excludes(slot{proto, fam.unspecified(), 80})
			}
			for _, set := range []string{fam.portsMap(), fam.hostedMap()} {
				for cut := range min(len(data), 40) + 1 {
					_ = placed{set, element{key: data[:cut], data: data[cut:]}}.isPort()
				}
			}
		}
		if e, ok := parseEntry(data); ok {
			require.True(t, e.dst.IsValid() && e.answerer.IsValid())
		}
		_, _ = parseOwned(data)
	})
}

// FuzzOwner: a name that is read back is the one that was written.
func FuzzOwner(f *testing.F) {
	f.Add("web/box/eth0")
	f.Add("//")
	f.Add("a/b")
	f.Fuzz(func(t *testing.T, s string) {
		if k, ok := parseOwner(s); ok {
			require.Equal(t, s, k.String())
			require.Len(t, tag(k), 15)
		}
		_, ok := parseOwner(conf.Key{Network: "web", ContainerID: "box", IfName: "eth0"}.String())
		require.True(t, ok)
	})
}
