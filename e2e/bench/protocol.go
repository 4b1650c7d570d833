package main

import (
	"encoding/binary"
	"errors"
	"os"
	"time"
)

// What a client asks for: the first byte of a connection, and of a datagram.
const (
	opUp      = 'U' // count what the client sends, and tell it
	opDown    = 'D' // send as fast as possible
	opPing    = 'P' // send every message of pingSize bytes back
	opTouch   = 'C' // send the byte back and wait for the end
	opAddress = 'A' // tell the client's address; UDP too
	opEcho    = 'E' // UDP: send the datagram back
)

const (
	pingSize   = 64
	bulkBuffer = 256 << 10
)

// window is the part of a bulk transfer that counts: the warm-up does not.
type window struct{ warm, length time.Duration }

// headerSize is the length of a bulk transfer's request.
const headerSize = 5

func (w window) header(op byte) []byte {
	h := make([]byte, headerSize)
	h[0] = op
	binary.BigEndian.PutUint16(h[1:], uint16(w.warm.Milliseconds()))
	binary.BigEndian.PutUint16(h[3:], uint16(w.length.Milliseconds()))
	return h
}

func parseWindow(h []byte) window {
	ms := func(b []byte) time.Duration { return time.Duration(binary.BigEndian.Uint16(b)) * time.Millisecond }
	return window{warm: ms(h[1:]), length: ms(h[3:])}
}

// count reads for as long as the window is and returns bits per second. Streams that
// begin together count over the same time, also one that gets nothing for a while.
func (w window) count(s socket) (float64, error) {
	buffer := make([]byte, bulkBuffer)
	start := time.Now().Add(w.warm)
	end := start.Add(w.length)
	var bytes int64
	s.setPatience(time.Until(end))
	for {
		n, err := s.read(buffer)
		now := time.Now()
		switch {
		case now.After(end) || errors.Is(err, os.ErrDeadlineExceeded):
			return float64(bytes) * 8 / w.length.Seconds(), nil
		case err != nil:
			return 0, err
		case n == 0:
			return 0, errors.New("the sender closed the connection too early")
		case now.After(start):
			bytes += int64(n)
		}
	}
}
