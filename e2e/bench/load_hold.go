package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// makers is how many connections or flows are in the making at a time.
const makers = 16

func holdConnections(r request) (figures, error) {
	return hold(r, func() (socket, error) { return touch(r.to) })
}

func holdFlows(r request) (figures, error) {
	message := make([]byte, pingSize)
	message[0] = opEcho
	return hold(r, func() (socket, error) {
		s, err := connect(unix.SOCK_DGRAM, r.to)
		if err != nil {
			return -1, err
		}
		s.setPatience(silence)
		if _, err := ask(s, message, make([]byte, pingSize)); err != nil {
			s.close()
			return -1, err
		}
		return s, nil
	})
}

// hold makes r.number sockets, says how many there are, and keeps them until
// standard input ends.
func hold(r request, one func() (socket, error)) (figures, error) {
	var mu sync.Mutex
	var made []socket
	var all tally
	next := make(chan struct{})
	go func() {
		defer close(next)
		for range r.number {
			next <- struct{}{}
		}
	}()
	inParallel(makers, func(int) {
		for range next {
			if s, err := attempt(&mu, &all, one); err == nil {
				mu.Lock()
				made = append(made, s)
				mu.Unlock()
			}
		}
	})
	if all.bad > 0 {
		fmt.Fprintln(os.Stderr, "bench:", all.complaint("attempts"))
	}
	found := figures{"held": float64(all.good), "failed": float64(all.bad)}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return found, nil
}

// giveUp is the number of failures after which the rest fails without a try.
const giveUp = 64

func attempt(mu *sync.Mutex, all *tally, one func() (socket, error)) (socket, error) {
	mu.Lock()
	hopeless, first := all.bad >= giveUp, all.first
	mu.Unlock()
	s, err := socket(-1), first
	if !hopeless {
		s, err = one()
	}
	mu.Lock()
	all.add(err)
	mu.Unlock()
	return s, err
}
