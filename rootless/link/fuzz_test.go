package link

import (
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// kinds are those of the lists that are read.
var kinds = []uint16{
	unix.RTM_NEWLINK, unix.RTM_NEWADDR, unix.RTM_NEWROUTE, unix.RTM_NEWRULE, unix.RTM_NEWNEIGH, unix.RTM_NEWQDISC, unix.RTM_NEWTCLASS, unix.RTM_NEWTFILTER,
}

func entry(kind uint16, attributes ...attribute) []byte {
	b := make([]byte, headers[kind])
	if len(b) >= 8 {
		binary.NativeEndian.PutUint32(b[4:], 2)
	}
	for _, a := range attributes {
		b = appendAttribute(b, a)
	}
	return b
}

// FuzzListed: whatever the list of a namespace has in it, which a container's root may have put
// there, is read, and compared, moved and renamed.
func FuzzListed(f *testing.F) {
	for i, kind := range kinds {
		f.Add(uint8(i), entry(kind), entry(kind))
		f.Add(uint8(i), entry(kind, attribute{1, []byte{10, 0, 0, 1}}, attribute{4, bytesOf(2)}), []byte{})
	}
	f.Add(uint8(2), entry(unix.RTM_NEWROUTE, attribute{unix.RTA_OIF, []byte{1}}, attribute{unix.RTA_MULTIPATH, []byte{8, 0, 0, 0, 2, 0, 0, 0}}), []byte{})
	action := appendAttribute(appendAttribute(nil, attribute{actKind, []byte("mirred\x00")}), attribute{actOptions, appendAttribute(nil, attribute{mirredParms, make([]byte, 28)})})
	options := appendAttribute(nil, attribute{7 | unix.NLA_F_NESTED, appendAttribute(nil, attribute{1, action})})
	f.Add(uint8(7), entry(unix.RTM_NEWTFILTER, attribute{unix.TCA_KIND, []byte("u32\x00")}, attribute{unix.TCA_OPTIONS, options}), []byte{})
	htb := appendAttribute(nil, attribute{htbInit, make([]byte, 20)})
	f.Add(uint8(5), entry(unix.RTM_NEWQDISC, attribute{unix.TCA_KIND, []byte("htb\x00")}, attribute{unix.TCA_OPTIONS, htb}), []byte{})
	f.Fuzz(func(t *testing.T, which uint8, one, other []byte) {
		kind := kinds[int(which)%len(kinds)]
		m := message{Kind: kind, Data: one}
		if len(one) < headers[kind] { // as each says
			return
		}
		if kind == unix.RTM_NEWLINK {
			_ = parseLink(&m)
			return
		}
		known := m.clean(names{2: "eth0", 0: "lo"})
		require.GreaterOrEqual(t, len(m.Data), headers[kind])
		if !known {
			return
		}
		require.NotEmpty(t, m.What)
		require.True(t, m.same(&m))
		_ = m.question()
		_ = m.lasts()
		if o := (message{Kind: kind, Data: other}); len(other) >= headers[kind] {
			_ = m.mayBe(&o)
			_ = m.same(&o)
		}
		_ = m.on(map[int]int{2: 3})
		m.rename(map[string]string{"eth0": "eth1"})
		_ = m.move(map[int]int{2: 3, 0: 0})
		require.GreaterOrEqual(t, len(m.Data), headers[kind])
	})
}

// FuzzCarried: of what a record says was carried nothing is taken that cannot be put back.
func FuzzCarried(f *testing.F) {
	whole, err := json.Marshal(Carried{Links: []Link{{Name: "eth0"}}, Hung: []message{{What: "a", Kind: unix.RTM_NEWROUTE, Data: entry(unix.RTM_NEWROUTE)}}, Sysctls: map[string]string{"ipv4/conf/eth0/forwarding": "1"}})
	require.NoError(f, err)
	f.Add(whole)
	f.Add([]byte(`{"hung":[{"kind":24,"data":""}],"removed":[{"kind":0}]}`))
	f.Add([]byte(`{"hung":[{"kind":36,"data":"AAAA"},null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c Carried
		if json.Unmarshal(text, &c) != nil {
			return
		}
		for _, list := range [][]message{c.Hung, c.Removed} {
			for _, m := range list {
				_ = m.question()
				_ = m.lasts()
				_ = m.same(&m)
				_ = m.number(unix.IFA_FLAGS)
				_ = m.on(map[int]int{2: 3})
				m.rename(map[string]string{"eth0": "eth1"})
			}
		}
		for name := range c.Sysctls {
			_ = c.ofLink(name)
		}
	})
}

// FuzzPassedOut: whatever the process says that was inside a container, no file stays open of what is
// refused, and a place comes of nothing but what it was to open.
func FuzzPassedOut(f *testing.F) {
	f.Add([]byte{stepDone, 0}, uint(7))
	f.Add([]byte{stepNet, byte(unix.EPERM)}, uint(0))
	f.Add([]byte{stepDone}, uint(1))
	f.Add([]byte{99, 1, 2, 3}, uint(30))
	f.Fuzz(func(t *testing.T, said []byte, files uint) {
		if len(said) == 0 {
			return
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(pair[0])
		fds := make([]int, files%40)
		for i := range fds {
			fds[i] = pair[1]
		}
		require.NoError(t, unix.Sendmsg(pair[1], said, unix.UnixRights(fds...), nil, 0))
		unix.Close(pair[1])
		out, err := receive(pair[0])
		if err != nil {
			require.NotContains(t, err.Error(), "%!")
			require.Nil(t, out)
			n, _, err := unix.Recvfrom(pair[0], make([]byte, 1), unix.MSG_DONTWAIT)
			require.NoError(t, err, "somebody has the other end open")
			require.Zero(t, n)
			return
		}
		require.LessOrEqual(t, len(out), 1+len(sysctls))
		_, err = FromFiles(asFiles(out))
		require.Error(t, err, "there is no network namespace among them")
	})
}
