package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bulk connects every stream, has all of them transfer at the same time and adds
// their rates.
func bulk(r request, transfer func(socket, window) (float64, error)) (figures, error) {
	streams := make([]socket, r.streams)
	for i := range streams {
		s, err := connect(unix.SOCK_STREAM, r.to)
		if err != nil {
			return nil, err
		}
		defer s.close()
		streams[i] = s
	}
	rates, errs := make([]float64, r.streams), make([]error, r.streams)
	inParallel(r.streams, func(i int) { rates[i], errs[i] = transfer(streams[i], r.window) })
	sum := 0.0
	for _, rate := range rates {
		sum += rate
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if sum == 0 {
		return nil, errors.New("nothing came through")
	}
	return figures{"gbit_s": sum / 1e9}, nil
}

// inParallel runs work n times at once and waits for all.
func inParallel(n int, work func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { work(i) })
	}
	all.Wait()
}

// sendBulk floods the server, which counts: what it has not got is not transferred.
func sendBulk(s socket, w window) (float64, error) {
	if _, err := s.write(w.header(opUp)); err != nil {
		return 0, err
	}
	s.setPatience(w.warm + w.length + 4*patience) // what is on its way in eight buffers comes first
	go flood(s)
	answer := make([]byte, 8)
	err := s.readFull(answer)
	_ = unix.Shutdown(int(s), unix.SHUT_RDWR) // ends the flood, too
	return math.Float64frombits(binary.BigEndian.Uint64(answer)), err
}

func receiveBulk(s socket, w window) (float64, error) {
	if _, err := s.write(w.header(opDown)); err != nil {
		return 0, err
	}
	return w.count(s)
}

// touch is the shortest conversation: connect, one byte each way.
func touch(to netip.AddrPort) (socket, error) {
	s, err := connect(unix.SOCK_STREAM, to)
	if err != nil {
		return -1, err
	}
	b := []byte{opTouch}
	if _, err = s.write(b); err == nil {
		err = s.readFull(b)
	}
	if err != nil {
		s.close()
		return -1, err
	}
	return s, nil
}

// connections counts conversations per second.
func connections(r request) (figures, error) {
	tallies := make([]tally, r.streams)
	begin := time.Now().Add(r.window.warm)
	end := begin.Add(r.window.length)
	inParallel(r.streams, func(i int) {
		for {
			s, err := touch(r.to)
			if err == nil {
				s.close()
			}
			now := time.Now()
			if now.After(end) {
				return
			}
			if now.After(begin) || err != nil {
				tallies[i].add(err)
			}
		}
	})
	var all tally
	for _, t := range tallies {
		all.merge(t)
	}
	if all.good+all.bad == 0 {
		return nil, errors.New("no connection in the time")
	}
	if err := all.err("connections"); err != nil {
		return nil, err
	}
	return figures{"per_s": float64(all.good) / r.window.length.Seconds(), "failed": float64(all.bad)}, nil
}

// pingPong measures round trips of pingSize bytes over one connection.
func pingPong(r request) (figures, error) {
	s, err := connect(unix.SOCK_STREAM, r.to)
	if err != nil {
		return nil, err
	}
	defer s.close()
	message := make([]byte, pingSize)
	trips, err := roundTrips(r.window, func() error {
		message[0] = opPing
		if _, err := s.tell(message); err != nil {
			return err
		}
		return s.hearFull(message)
	})
	if err != nil {
		return nil, err
	}
	return percentiles(trips), nil
}

// roundTrips repeats a trip for as long as the window is.
func roundTrips(w window, trip func() error) ([]time.Duration, error) {
	begin := time.Now()
	trips := make([]time.Duration, 0, 1<<16)
	last := begin
	for last.Sub(begin) < w.warm+w.length {
		if err := trip(); err != nil {
			return nil, fmt.Errorf("after %d round trips: %w", len(trips), err)
		}
		now := time.Now()
		if last.Sub(begin) >= w.warm {
			trips = append(trips, now.Sub(last))
		}
		last = now
	}
	if len(trips) == 0 {
		return nil, errors.New("no round trip in the time")
	}
	return trips, nil
}

// percentiles are in microseconds.
func percentiles(d []time.Duration) figures {
	slices.Sort(d)
	at := func(p int) float64 { return float64(d[min(len(d)-1, len(d)*p/100)].Nanoseconds()) / 1e3 }
	return figures{"p50_us": at(50), "p99_us": at(99), "number": float64(len(d))}
}
