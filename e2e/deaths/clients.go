package deaths

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clients are all that goes on beside the killing.
type clients struct {
	plan *Plan

	mu       sync.Mutex
	kills    []kill
	faults   []string // what may not be
	connects int
	waited   time.Duration // the longest wait for a greeting, until the end of that connection
	slowest  string        // where that was, and when it was connected
	broken   int           // what was under way and ended with who carried it
	bytes    int64
	names    int
	retried  int

	over    chan struct{}
	running sync.WaitGroup
}

func (c *clients) fault(format string, a ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, a...))
}

func (c *clients) ended() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// start has all clients begin.
func (c *clients) start() {
	c.over = make(chan struct{})
	for _, w := range c.plan.Connect {
		c.often(func() { c.connect(w) })
	}
	for _, q := range c.plan.Questions {
		c.often(func() { c.ask(q) })
	}
	for _, w := range c.plan.Streams {
		c.running.Go(func() {
			for !c.ended() {
				c.stream(w)
			}
		})
	}
}

// stop has all come to their end, and waits for it.
func (c *clients) stop() {
	close(c.over)
	c.running.Wait()
}

// often begins something so many times a second, whether or not the one before is done.
func (c *clients) often(do func()) {
	c.running.Go(func() {
		pace := time.NewTicker(time.Second / time.Duration(c.plan.Rate))
		defer pace.Stop()
		for !c.ended() {
			<-pace.C
			c.running.Go(do)
		}
	})
}

// connect connects and is greeted. To connect may take long, and never fails. What is connected
// may end with who carries it.
func (c *clients) connect(w Way) {
	began := time.Now()
	conn, err := dial(w.Netns, "tcp", w.Addr, patience)
	if errors.Is(err, unix.ECONNRESET) { // it was connected
		c.breaks(w, began, "a connection", err)
		return
	}
	if err != nil {
		c.fault("a connect to %s failed after %v: %v", w.Addr, time.Since(began), err)
		return
	}
	connected := time.Since(began)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	n, err := conn.Read(make([]byte, 100))
	c.mu.Lock()
	c.connects++
	if waited := time.Since(began); waited > c.waited {
		c.waited, c.slowest = waited, fmt.Sprintf("%s, connected after %d ms, then %d bytes, %v", w.Addr, connected.Milliseconds(), n, err)
	}
	c.mu.Unlock()
	if n == 0 {
		c.breaks(w, began, "a connection", err)
	}
}

// breaks is about what has ended too early.
func (c *clients) breaks(w Way, began time.Time, what string, err error) {
	c.mu.Lock()
	c.broken++
	carried := slices.ContainsFunc(c.kills, func(k kill) bool {
		return k.at.After(began) && slices.ContainsFunc(k.victims, func(v string) bool { return slices.Contains(w.By, v) })
	})
	c.mu.Unlock()
	if !carried {
		c.fault("%s to %s, begun %v ago, broke: %v", what, w.Addr, time.Since(began), err)
	}
}

// piece is what goes over a stream at a time, and comes back; with pieceGap it leaves the processors
// to others.
const (
	piece    = 64 << 10
	pieceGap = 10 * time.Millisecond
)

// stream has bytes go there and back until the end, or until it breaks.
func (c *clients) stream(w Way) {
	began := time.Now()
	conn, err := dial(w.Netns, "tcp", w.Addr, patience)
	if err != nil {
		c.fault("a stream's connect to %s failed after %v: %v", w.Addr, time.Since(began), err)
		return
	}
	defer conn.Close()
	if err := c.echo(conn); err != nil {
		c.breaks(w, began, "a stream", err)
	}
}

func (c *clients) echo(conn net.Conn) error {
	out, in := make([]byte, piece), make([]byte, piece)
	_ = conn.SetDeadline(time.Now().Add(patience))
	for b := []byte{0}; b[0] != '\n'; { // the greeting
		if _, err := conn.Read(b); err != nil {
			return err
		}
	}
	for round := byte(0); !c.ended(); round++ {
		for i := range out {
			out[i] = round + byte(i>>8)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		written := make(chan error, 1)
		go func() { _, err := conn.Write(out); written <- err }()
		_, err := io.ReadFull(conn, in)
		if err != nil {
			conn.Close()
		}
		if err := errors.Join(err, <-written); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			c.fault("a stream has other bytes than it should")
			return nil
		}
		c.mu.Lock()
		c.bytes += 2 * piece
		c.mu.Unlock()
		time.Sleep(pieceGap)
	}
	return nil
}

// As resolvers do (resolv.conf(5)), and once more: of two who are killed after one another each
// may take a question with it.
const (
	tries   = 3
	tryTime = 5 * time.Second
)

// ask asks as a resolver does.
func (c *clients) ask(q Question) {
	var err error
	for i := range tries {
		if err = answered(q, tryTime); err == nil {
			c.mu.Lock()
			c.names++
			c.retried += i
			c.mu.Unlock()
			return
		}
	}
	c.fault("the name %s of %s: %v", q.Name, q.Server, err)
}

// answered asks once for an address.
func answered(q Question, wait time.Duration) error {
	conn, err := dial(q.Netns, "udp", q.Server, wait)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write(question(q.Name)); err != nil {
		return err
	}
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	if err != nil {
		return err
	}
	const header = 12
	if n < header || b[3]&0xf != 0 || binary.BigEndian.Uint16(b[6:]) == 0 {
		return fmt.Errorf("no address in the answer %x", b[:n])
	}
	return nil
}

// question is one of type A (RFC 1035).
func question(name string) []byte {
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		q = append(append(q, byte(len(label))), label...)
	}
	return append(q, 0, 0, 1, 0, 1)
}
