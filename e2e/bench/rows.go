package main

import "fmt"

// row is one line of the table.
type row struct {
	key   string // in JSON
	title string
	unit  string
	lower bool // less is better
	kind  string
	args  []string
	// figure is the one of the load's figures that counts, times scale.
	figure string
	scale  float64
	number int // connections or flows to hold
	// repeat is how often a round measures it, with new connections each time: where the
	// scheduler puts the three processes for one of them decides its round trips.
	repeat int
}

// window is the part of the run's that this row needs: bulk transfers take longest to
// find their speed.
func (r row) window(w window) window {
	if r.kind == "up" || r.kind == "down" {
		return w
	}
	return window{warm: w.warm / 2, length: w.length / 2}
}

// Rows that one load makes come one after the other and share kind and args.
func loadRows() []row {
	return []row{
		{key: "tcp_up", title: "TCP, one stream up", unit: "Gbit/s", kind: "up", figure: "gbit_s", scale: 1},
		{key: "tcp_down", title: "TCP, one stream down", unit: "Gbit/s", kind: "down", figure: "gbit_s", scale: 1},
		{key: "tcp_up_8", title: "TCP, 8 streams up", unit: "Gbit/s", kind: "up", args: []string{"-streams", "8"}, figure: "gbit_s", scale: 1},
		{key: "tcp_down_8", title: "TCP, 8 streams down", unit: "Gbit/s", kind: "down", args: []string{"-streams", "8"}, figure: "gbit_s", scale: 1},
		{key: "connections_1", title: "connections, 1 client", unit: "/s", kind: "conn", figure: "per_s", scale: 1},
		{key: "connections_16", title: "connections, 16 clients", unit: "/s", kind: "conn", args: []string{"-streams", "16"}, figure: "per_s", scale: 1},
		{key: "round_trip_p50", title: "TCP round trip of 64 bytes, p50", unit: "µs", lower: true, kind: "ping", figure: "p50_us", scale: 1, repeat: 3},
		{key: "round_trip_p99", title: "TCP round trip of 64 bytes, p99", unit: "µs", lower: true, kind: "ping", figure: "p99_us", scale: 1, repeat: 3},
		{key: "udp_rr", title: "UDP request and response", unit: "/s", kind: "udp-rr", figure: "per_s", scale: 1, repeat: 3},
		{key: "udp_echo", title: "UDP echo of 1200 bytes, 64 under way", unit: "/s", kind: "echo", figure: "per_s", scale: 1},
		{key: "udp_loss", title: "loss in it", unit: "%", lower: true, kind: "echo", figure: "loss", scale: 100},
	}
}

// optionalRows are measured when asked for by key only: whether many streams share
// what few have.
func optionalRows() []row {
	var rows []row
	for _, n := range []string{"16", "64"} {
		rows = append(rows,
			row{key: "tcp_many_up_" + n, title: "TCP, " + n + " streams up", unit: "Gbit/s", kind: "up", args: []string{"-streams", n}, figure: "gbit_s", scale: 1},
			row{key: "tcp_many_down_" + n, title: "TCP, " + n + " streams down", unit: "Gbit/s", kind: "down", args: []string{"-streams", n}, figure: "gbit_s", scale: 1})
	}
	return rows
}

// Memory rows come from an instance that has seen nothing else.
func idleRow() row {
	return row{key: "memory_idle", title: "resident memory, idle", unit: "MB", lower: true}
}

// holdRows hold 10,000 where the limit of open files allows that many to a forwarder
// that needs two for each, and fewer in a row that peers who need more can do, too.
func holdRows() []row {
	many := min(10000, (openFiles()-500)/2)
	few := 2500
	connections := func(number int, key string) row {
		return row{key: key, title: fmt.Sprintf("resident memory, %s idle TCP connections", thousands(number)), unit: "MB", lower: true, kind: "hold", number: number}
	}
	return []row{
		connections(few, "memory_connections_few"),
		connections(many, "memory_connections"),
		{key: "memory_flows", title: "resident memory, 10,000 UDP flows", unit: "MB", lower: true, kind: "flows", number: 10000},
	}
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// client is where the load comes from.
type client struct {
	key, title string
	address    string   // of the host, as this client sees it
	runner     []string // what the load's command begins with
}

func clients() []client {
	return []client{
		{key: "loopback", title: "loopback client", address: "127.0.0.1"},
		{key: "neighbour", title: "client in another network namespace, a veth away", address: hostAddress, runner: []string{"ip", "netns", "exec", neighbour}},
	}
}
