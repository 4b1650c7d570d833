package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// silence is how long nothing may come before what is under way counts as lost.
const silence = 200 * time.Millisecond

// ask sends a datagram and waits for its answer, and asks again when none comes.
func ask(s socket, message, answer []byte) (int, error) {
	var err error
	for range 3 {
		if _, err = s.tell(message); err != nil {
			continue // an ICMP error of before
		}
		var n int
		if n, err = s.hear(answer); err == nil {
			return n, nil
		}
	}
	return 0, err
}

// datagramPingPong counts requests with their responses, one at a time.
func datagramPingPong(r request) (figures, error) {
	s, err := connect(unix.SOCK_DGRAM, r.to)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.setPatience(silence)
	message := make([]byte, pingSize)
	message[0] = opEcho
	answer := make([]byte, pingSize)
	trips, err := roundTrips(r.window, func() error {
		_, err := ask(s, message, answer)
		return err
	})
	if err != nil {
		return nil, err
	}
	found := percentiles(trips)
	found["per_s"] = float64(len(trips)) / r.window.length.Seconds()
	return found, nil
}

// echoes is a windowed echo under way.
type echoes struct {
	s              socket
	message        []byte
	sent, received uint64
	flight         int // sent and not received, as far as is known
	counted        uint64
	seen           []bool
	twice          uint64
}

// windowedEcho keeps r.flight datagrams under way and counts those that come back.
func windowedEcho(r request) (figures, error) {
	s, err := connect(unix.SOCK_DGRAM, r.to)
	if err != nil {
		return nil, err
	}
	defer s.close()
	_ = unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	s.setPatience(silence)
	e := &echoes{s: s, message: make([]byte, max(r.size, 9)), seen: make([]bool, 0, 1<<20)}
	e.message[0] = opEcho
	begin := time.Now()
	warm, end := begin.Add(r.window.warm), begin.Add(r.window.warm+r.window.length)
	for now := begin; now.Before(end); now = time.Now() {
		for ; e.flight < r.flight; e.flight++ {
			if err := e.send(); err != nil {
				return nil, err
			}
		}
		if e.take() && now.After(warm) {
			e.counted++
		}
	}
	for e.received < e.sent && e.take() { // the last ones
	}
	if e.counted == 0 {
		return nil, fmt.Errorf("%d datagrams sent and no answer", e.sent)
	}
	return figures{
		"per_s":  float64(e.counted) / r.window.length.Seconds(),
		"loss":   float64(e.sent-e.received) / float64(e.sent),
		"lost":   float64(e.sent - e.received),
		"number": float64(e.sent),
	}, nil
}

func (e *echoes) send() error {
	binary.BigEndian.PutUint64(e.message[1:], e.sent)
	if _, err := e.s.tell(e.message); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	e.sent++
	e.seen = append(e.seen, false)
	return nil
}

// take receives one datagram, true when it is an answer not seen before. After a
// silence everything under way is taken for lost, unless it comes later.
func (e *echoes) take() bool {
	buffer := e.message[:cap(e.message)]
	n, err := e.s.hear(buffer)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			e.flight = 0
		}
		return false
	}
	number := binary.BigEndian.Uint64(buffer[1:])
	if n != len(e.message) || number >= e.sent || e.seen[number] {
		e.twice++
		return false
	}
	e.seen[number] = true
	e.received++
	e.flight = max(0, e.flight-1)
	return true
}

// firstDatagrams times the first datagram of many flows, which is the one that a
// firewall looks up.
func firstDatagrams(r request) (figures, error) {
	message, answer := make([]byte, pingSize), make([]byte, pingSize)
	message[0] = opEcho
	times := make([]time.Duration, 0, r.number)
	for range r.number {
		s, err := connect(unix.SOCK_DGRAM, r.to)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		_, err = s.tell(message)
		if err == nil {
			_, err = s.hear(answer)
		}
		times = append(times, time.Since(begin))
		s.close()
		if err != nil {
			return nil, err
		}
	}
	return percentiles(times), nil
}

// printAddress prints what the server takes the client for.
func printAddress(to netip.AddrPort) error {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		address, err := seenAddress(kind, to)
		if err != nil {
			address = "failed: " + err.Error()
		}
		fmt.Println(address)
	}
	return nil
}

func seenAddress(kind int, to netip.AddrPort) (string, error) {
	s, err := connect(kind, to)
	if err != nil {
		return "", err
	}
	defer s.close()
	s.setPatience(time.Second)
	answer := make([]byte, 64)
	n, err := ask(s, []byte{opAddress}, answer)
	if err == nil && n == 0 {
		err = errors.New("the connection was closed")
	}
	return string(answer[:n]), err
}
