package nat

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// TestSCTP sends the first packet of an association, an INIT chunk, through a
// published port. Raw sockets do, so it works on kernels without SCTP sockets.
func TestSCTP(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		p := publishWeb(port(conf.SCTP, "", 3868, 3869))
		l.add(t, p)
		require.NoError(t, l.check(t, p))
		in := l.web.rawSCTP(t)
		l.client.do(t, func() {
			out, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP)
			require.NoError(t, err)
			defer func() { _ = unix.Close(out) }()
			require.NoError(t, unix.Sendto(out, sctpInit(40000, 3868), 0, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}}))
		})
		packet := make([]byte, 1500)
		n, from, err := unix.Recvfrom(in, packet, 0)
		for errors.Is(err, unix.EINTR) { // by a signal of the Go runtime
			n, from, err = unix.Recvfrom(in, packet, 0)
		}
		require.NoError(t, err)
		require.Equal(t, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 2}}, from)
		const ipHeader = 20
		require.Equal(t, sctpInit(40000, 3869), packet[ipHeader:n])
		require.Equal(t, []string{"3868"}, l.flows(t))
		l.del(t, p)
		require.Empty(t, l.flows(t))
	})
}

// rawSCTP is a socket that hears all SCTP packets of the namespace.
func (s *space) rawSCTP(t *testing.T) (fd int) {
	t.Helper()
	s.do(t, func() {
		var err error
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP)
		require.NoError(t, err)
		require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}))
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// sctpInit is an SCTP packet with an INIT chunk (RFC 9260, sections 3.1 and
// 3.3.2).
func sctpInit(source, destination uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, source)
	b = binary.BigEndian.AppendUint16(b, destination)
	b = binary.BigEndian.AppendUint32(b, 0)          // verification tag, 0 for INIT
	b = binary.LittleEndian.AppendUint32(b, 0)       // checksum, below
	b = append(b, 1, 0, 0, 20)                       // INIT, 20 bytes
	b = binary.BigEndian.AppendUint32(b, 0x01020304) // initiate tag
	b = binary.BigEndian.AppendUint32(b, 1<<16)      // receiver window
	b = append(b, 0, 1, 0, 1)                        // outbound and inbound streams
	b = binary.BigEndian.AppendUint32(b, 1)          // first transmission sequence number
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[8:], sum)
	return b
}
