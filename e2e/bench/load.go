package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// figures are what a measurement found, by name.
type figures map[string]float64

// request is what a measurement is asked to do.
type request struct {
	to      netip.AddrPort
	window  window
	streams int
	size    int
	flight  int
	number  int
}

// kinds are the measurements by name.
var kinds = map[string]func(request) (figures, error){
	"up":     func(r request) (figures, error) { return bulk(r, sendBulk) },
	"down":   func(r request) (figures, error) { return bulk(r, receiveBulk) },
	"conn":   connections,
	"ping":   pingPong,
	"udp-rr": datagramPingPong,
	"echo":   windowedEcho,
	"first":  firstDatagrams,
	"hold":   holdConnections,
	"flows":  holdFlows,
}

const loadUsage = `usage: bench load KIND [FLAGS]
  up, down   TCP bulk with -streams connections
  conn       connections per second with -streams clients: connect, one byte each way, close
  ping       TCP round trip of 64 bytes
  udp-rr     UDP request and response, one at a time
  echo       UDP datagrams of -size bytes sent back, -flight of them under way
  first      time of the first datagram and its answer, from -number new sockets
  hold       hold -number idle TCP connections until standard input ends
  flows      hold -number UDP flows until standard input ends
  address    print the address that the server sees, TCP and UDP
flags:`

func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprintln(os.Stderr, loadUsage); flags.PrintDefaults() }
	to := flags.String("to", "127.0.0.1:5000", "address and `port` of the server")
	r := request{}
	flags.DurationVar(&r.window.length, "time", time.Second, "how long to measure")
	flags.DurationVar(&r.window.warm, "warm", 200*time.Millisecond, "how long to go before measuring")
	flags.IntVar(&r.streams, "streams", 1, "connections at a time")
	flags.IntVar(&r.size, "size", 1200, "bytes of a datagram")
	flags.IntVar(&r.flight, "flight", 64, "datagrams under way")
	flags.IntVar(&r.number, "number", 10000, "connections or flows to hold")
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		flags.Usage()
		os.Exit(2)
	}
	_ = flags.Parse(args[1:])
	var err error
	if r.to, err = netip.ParseAddrPort(*to); err != nil {
		return err
	}
	raiseLimit()
	keepProcessors()
	if args[0] == "address" {
		return printAddress(r.to)
	}
	measure := kinds[args[0]]
	if measure == nil {
		return fmt.Errorf("load %q is not known", args[0])
	}
	found, err := measure(r)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

// tally collects the failures of many attempts; few are told, many are an error.
type tally struct {
	good, bad int
	first     error
}

func (t *tally) add(err error) {
	if err == nil {
		t.good++
		return
	}
	t.bad++
	if t.first == nil {
		t.first = err
	}
}

func (t *tally) merge(o tally) {
	t.good += o.good
	t.bad += o.bad
	if t.first == nil {
		t.first = o.first
	}
}

// err is not nil when more than one attempt in a hundred failed, or all did.
func (t *tally) err(what string) error {
	if t.good > 0 && t.bad*100 <= t.good {
		return nil
	}
	return t.complaint(what)
}

func (t *tally) complaint(what string) error {
	return fmt.Errorf("%d of %d %s failed: %w", t.bad, t.good+t.bad, what, t.first)
}
