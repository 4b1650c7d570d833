package names

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The patience with one server by TCP.
const (
	dialFor     = 2 * time.Second
	exchangeFor = 5 * time.Second
)

// askByTCP asks the servers one after another; nil when none knows. msg is as the client
// has sent it, with its question's end, and so is the answer.
func askByTCP(msg []byte, end int, servers []netip.AddrPort) (refusal []byte) {
	for _, server := range servers {
		answer, err := exchange(msg, server)
		if err != nil || !answers(answer, binary.BigEndian.Uint16(msg), msg[headerSize:end]) {
			continue
		}
		switch codeOf(answer) {
		case dnsmessage.RCodeServerFailure, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeRefused:
			refusal = answer
		default:
			return answer
		}
	}
	return refusal
}

func exchange(msg []byte, server netip.AddrPort) ([]byte, error) {
	c, err := net.DialTimeout("tcp", server.String(), dialFor)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(exchangeFor)); err != nil {
		return nil, err
	}
	if err := writeMessage(c, msg); err != nil {
		return nil, err
	}
	return readMessage(c, nil, maxMessage)
}

// writeMessage sends a message with its length before it (RFC 1035, section 4.2.2), in one
// piece.
func writeMessage(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}

// readMessage reads a message of at most longest bytes. begun is called when its length
// is there.
func readMessage(r io.Reader, begun func() error, longest int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	if begun != nil {
		if err := begun(); err != nil {
			return nil, err
		}
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n < headerSize || n > longest {
		return nil, noQuery
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}
