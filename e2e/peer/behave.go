package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file tries whether a way out behaves as no way out would: a server with manners
// (peer manners) and a client that looks for them (peer behave).

// The server's ports, from its first one on.
const (
	portHTTP   = iota // GET /N: so many bytes; POST: the sum of what came
	portTCP           // a word, see serveManners
	portUDP           // answers what it gets, later
	portNobody        // nobody is here
)

// late is after how long a datagram is answered, so that many are under way.
const late = 300 * time.Millisecond

func portAt(addr string, offset int) (string, error) {
	first, err := netip.ParseAddrPort(addr)
	return netip.AddrPortFrom(first.Addr(), first.Port()+uint16(offset)).String(), err
}

func serveManners(addr string) error {
	var at [portNobody]string
	for i := range at {
		var err error
		if at[i], err = portAt(addr, i); err != nil {
			return err
		}
	}
	words, err := net.Listen("tcp", at[portTCP])
	if err != nil {
		return err
	}
	datagrams, err := net.ListenPacket("udp", at[portUDP])
	if err != nil {
		return err
	}
	go answerLate(datagrams)
	go answerWords(words)
	return http.ListenAndServe(at[portHTTP], http.HandlerFunc(serveBytes))
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		sum, _ := sumOf(r.Body)
		fmt.Fprint(w, sum)
		return
	}
	n, _ := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/"), 10, 64)
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = io.Copy(w, someBytes(n))
}

// someBytes are the same ones each time.
func someBytes(n int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), n) }

func sumOf(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

func answerLate(conn net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		answer := append([]byte{}, b[:n]...)
		time.AfterFunc(late, func() { _, _ = conn.WriteTo(answer, from) })
	}
}

// answerWords does what the first byte of a connection says: "h" counts what comes until
// the end of the client's half, "r" resets, "w" waits how the client ends, and "q" says how
// the last one that waited did.
func answerWords(l net.Listener) {
	ends := make(chan string, 1)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go answerWord(conn.(*net.TCPConn), ends)
	}
}

func answerWord(conn *net.TCPConn, ends chan string) {
	defer conn.Close()
	word := make([]byte, 1)
	if _, err := io.ReadFull(conn, word); err != nil {
		return
	}
	switch word[0] {
	case 'h':
		n, _ := io.Copy(io.Discard, conn)
		fmt.Fprintf(conn, "%d", n)
	case 'r':
		_ = conn.SetLinger(0)
	case 'w':
		fmt.Fprint(conn, "w")
		_, err := io.Copy(io.Discard, conn)
		ends <- fmt.Sprint(errors.Is(err, syscall.ECONNRESET))
	case 'q':
		fmt.Fprint(conn, <-ends)
	}
}

// behave prints a line for each thing that is as it should be, and fails when one is not
// that is not among the known ones, which are not tried.
func behave(args []string) error {
	addr, amount, known := args[0], args[1], args[2:]
	var errs []error
	n, err := strconv.ParseInt(amount, 10, 64)
	if err != nil {
		return err
	}
	for _, try := range []struct {
		name string
		port int
		try  func(at string) error
	}{
		{"download", portHTTP, func(at string) error { return download(at, n) }},
		{"upload", portHTTP, func(at string) error { return upload(at, n) }},
		{"half-close", portTCP, halfClose},
		{"reset by the server", portTCP, resetByServer},
		{"reset by the client", portTCP, resetByClient},
		{"refused", portNobody, refusedSoon},
		{"64 datagrams under way", portUDP, datagramsUnderWay},
	} {
		if slices.Contains(known, try.name) {
			fmt.Println("known not to be so: " + try.name)
			continue
		}
		at, err := portAt(addr, try.port)
		if err == nil {
			err = try.try(at)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s (%s): %w", try.name, at, err))
			continue
		}
		fmt.Println(try.name)
	}
	return errors.Join(errs...)
}

func download(at string, n int64) error {
	r, err := http.Get(fmt.Sprintf("http://%s/%d", at, n))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return sameSum(r.Body, n)
}

func sameSum(got io.Reader, n int64) error {
	sum, err := sumOf(got)
	if want, _ := sumOf(someBytes(n)); err == nil && sum != want {
		err = errors.New("the bytes are others")
	}
	return err
}

func upload(at string, n int64) error {
	r, err := http.Post("http://"+at, "", someBytes(n))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	sum, err := io.ReadAll(r.Body)
	if want, _ := sumOf(someBytes(n)); err == nil && string(sum) != want {
		err = errors.New("the bytes are others")
	}
	return err
}

// say connects and says the word.
func say(at, word string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, err = conn.Write([]byte(word))
	return conn.(*net.TCPConn), err
}

func halfClose(at string) error {
	conn, err := say(at, "h"+strings.Repeat("x", 100_000))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	count, err := io.ReadAll(conn)
	if err == nil && string(count) != "100000" {
		err = fmt.Errorf("%q bytes came", count)
	}
	return err
}

func resetByServer(at string) error {
	conn, err := say(at, "r")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err = conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("it ended with %w", err)
	}
	return nil
}

func resetByClient(at string) error {
	conn, err := say(at, "w")
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return err
	}
	_ = conn.SetLinger(0)
	conn.Close()
	asked, err := say(at, "q")
	if err != nil {
		return err
	}
	defer asked.Close()
	reset, err := io.ReadAll(asked)
	if err == nil && string(reset) != "true" {
		err = errors.New("the server saw an end, and no reset")
	}
	return err
}

// refusedSoon: one of some tries, as the machine may be busy.
func refusedSoon(at string) error {
	var took time.Duration
	for range 50 {
		began := time.Now()
		conn, err := net.DialTimeout("tcp", at, patience)
		if took = time.Since(began); err == nil {
			conn.Close()
			return errors.New("somebody answers")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		if took < 50*time.Millisecond {
			return nil
		}
	}
	return fmt.Errorf("it takes %v", took)
}

// datagramsUnderWay sends again what is not answered: datagrams may be lost.
func datagramsUnderWay(at string) error {
	const many = 64
	conn, err := net.Dial("udp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	missing := map[string]bool{}
	for i := range many {
		missing[strconv.Itoa(i)] = true
	}
	b := make([]byte, 64)
	for end := time.Now().Add(patience); len(missing) > 0; {
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d have no answer", len(missing), many)
		}
		for text := range missing {
			if _, err := conn.Write([]byte(text)); err != nil {
				return err
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * late))
		for len(missing) > 0 {
			n, err := conn.Read(b)
			if err != nil {
				break
			}
			delete(missing, string(b[:n]))
		}
	}
	return nil
}

// unreachable prints the error of a connection, which has to come by itself.
func unreachable(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err == nil {
		conn.Close()
		return errors.New("it is reached")
	}
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return err
	}
	fmt.Println(unix.ErrnoName(errno))
	return nil
}
