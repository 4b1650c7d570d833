package bridge

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// FuzzListed: whatever the kernel lists of interfaces, addresses, routes, bandwidth limits and
// firewalls is read, or refused: names and addresses are a container's choice.
func FuzzListed(f *testing.F) {
	with := func(header int, attributes func(*nlsock.Encoder)) []byte {
		r, err := nlsock.NewRequest("", 0, 0, make([]byte, header), attributes)
		require.NoError(f, err)
		return r.Data
	}
	f.Add([]byte{})
	f.Add(with(unix.SizeofIfInfomsg, func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, "eth0")
		e.String(unix.IFLA_IFALIAS, "ambi web box eth0")
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.String(unix.IFLA_INFO_KIND, "veth")
			e.Nested(unix.IFLA_INFO_SLAVE_DATA, func(e *nlsock.Encoder) error {
				e.Uint8(brportMode, 1)
				return nil
			})
			return nil
		})
	}))
	f.Add(with(unix.SizeofIfAddrmsg, func(e *nlsock.Encoder) { e.Bytes(unix.IFA_LOCAL, []byte{10, 0, 0, 1}) }))
	f.Add(with(unix.SizeofRtMsg, func(e *nlsock.Encoder) { e.Bytes(unix.RTA_GATEWAY, make([]byte, 16)) }))
	f.Add(with(sizeofTcMsg, func(e *nlsock.Encoder) {
		e.String(tcaKind, "tbf")
		e.Nested(tcaOptions, func(e *nlsock.Encoder) error {
			e.Bytes(tbfParms, make([]byte, 36))
			e.Bytes(tbfRate64, make([]byte, 8))
			return nil
		})
	}))
	f.Add(with(4, func(e *nlsock.Encoder) {
		e.String(unix.NFTA_CHAIN_TABLE, "filter")
		e.Nested(unix.NFTA_CHAIN_HOOK, func(e *nlsock.Encoder) error {
			e.Bytes(unix.NFTA_HOOK_HOOKNUM, []byte{0, 0, 0, 2})
			return nil
		})
	}))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if l, err := parseLink(data); err == nil {
			_, _ = networkOf(l)
			_, _ = keyOf(l)
			_ = isPort(l)
		}
		_, _ = parseAddress(data)
		_, _ = parseRoute(data)
		_, _ = parseBucket(data)
		_ = readBase(data)
		_, _ = keysIn(data)
		_, _ = partsIn(data)
	})
}

// FuzzLegacy: whatever the table of the older iptables holds, where a chain begins and ends in it
// is found, or nothing is.
func FuzzLegacy(f *testing.F) {
	entries := make([]byte, 300)
	entries[88], entries[90] = 112, 152 // target_offset, next_offset
	f.Add(entries, uint32(0), uint32(152))
	f.Add([]byte{}, uint32(0), uint32(0))
	f.Add(entries, ^uint32(0), ^uint32(0))
	f.Fuzz(func(t *testing.T, entries []byte, begin, policy uint32) {
		for _, l := range []legacy{legacyIPv4, legacyIPv6} {
			_ = l.drops(entries, policy)
			size := 0
			for _, rule := range l.rules(entries, begin, policy) {
				size += len(rule)
			}
			require.LessOrEqual(t, size, len(entries))
		}
	})
}

// FuzzBus: whatever comes from the system's message bus is read in bounds.
func FuzzBus(f *testing.F) {
	f.Add(busMessage(1, "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "Hello", []string{"a", "b"}))
	f.Add([]byte("l\x03\x00\x01\x05\x00\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00\x05\x01u\x00\x01\x00\x00\x00\x04\x01s\x00\x00\x00\x00\x00\x01\x00\x00\x00x"))
	f.Add([]byte("B\x02\x00\x01\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Add([]byte("l\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x08\x01g\x00\xff\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		a, err := readBusMessage(bytes.NewReader(sent))
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(a.member)+len(a.errorName)+len(a.text), 3*len(sent))
	})
}
