// Command bench measures ambi side by side with its peers, in one run and in
// turns, and is the load program that this is done with.
//
//	bench serve      the server: answers whatever a load asks for
//	bench load       one measurement against a server, as JSON
//	bench run        forwarders: ambi, its peers, and none
//	bench run-out    ways out: ambi's drivers, their peers, and none
//	bench run-names  name servers of a network: ambi, dnsmasq, aardvark-dns
//	bench run-cost   what ADD, DEL and an idle attachment cost
//
// It imports nothing of ambi and drives the built binary, as its users do. run and
// run-cost need root, to make a world of namespaces which goes with them; nothing of
// the host is touched.
package main

import (
	"fmt"
	"os"
)

// command is one sub-command; it gets the arguments after its name.
type command struct {
	name, about string
	run         func(args []string) error
}

func commands() []command {
	return []command{
		{"serve", "answer loads on a TCP and UDP port", serve},
		{"load", "measure once against a server; JSON on standard output", load},
		{"run", "measure the forwarders in turns (root)", runForwarders},
		{"run-out", "measure the ways out of containers in turns (root)", runOut},
		{"run-between", "measure what containers of a network send each other, in turns (root)", runBetween},
		{"run-names", "measure name servers of a network in turns (root)", runNames},
		{"ask", "ask a DNS server; JSON on standard output", askServer},
		{"answer", "answer DNS", answer},
		{"run-cost", "measure what the CNI verbs cost (root)", runCost},
	}
}

func main() {
	if len(os.Args) > 1 {
		for _, c := range commands() {
			if c.name == os.Args[1] {
				exit(c.run(os.Args[2:]))
			}
		}
	}
	fmt.Fprintln(os.Stderr, "usage: bench COMMAND [FLAGS]   (bench COMMAND -h tells its flags)")
	for _, c := range commands() {
		fmt.Fprintf(os.Stderr, "  %-9s %s\n", c.name, c.about)
	}
	os.Exit(2)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
