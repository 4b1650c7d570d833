package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// plan is what a run of the forwarders does.
type plan struct {
	rounds, memoryRounds int
	window               window
	forwarders           []forwarder
	rows                 []row
	holds                []row // of memory under connections and flows
	clients              []client
	out, data            string
}

func runForwarders(args []string) error {
	flags := flag.NewFlagSet("run", flag.ExitOnError)
	p := plan{}
	quick := flags.Bool("quick", false, "one short round, to see that everything works")
	only := flags.String("only", "", "comma-separated `names` of forwarders (parts of names will do)")
	before := flags.String("before", "", "`binary` of ambi to measure as well, as \"another ambi\"")
	rows := flags.String("rows", "", "comma-separated `keys` of rows, the same way")
	from := flags.String("from", "", "comma-separated `keys` of clients, the same way")
	flags.IntVar(&p.rounds, "rounds", 5, "rounds; every forwarder has its turn in each")
	flags.IntVar(&p.memoryRounds, "memory-rounds", 2, "rounds that measure memory under connections and flows")
	flags.DurationVar(&p.window.length, "time", 700*time.Millisecond, "how long to measure a bulk transfer; the other rows half as long")
	flags.DurationVar(&p.window.warm, "warm", 250*time.Millisecond, "how long to go before, the same way")
	flags.StringVar(&p.out, "out", "docs/bench", "`folder` for forward.md and forward.svg; empty for none")
	flags.StringVar(&p.data, "data", "reports", "`folder` for forward.json, every single figure; empty for none")
	_ = flags.Parse(args)
	if *quick {
		p.rounds, p.memoryRounds, p.window = 1, 1, window{warm: 100 * time.Millisecond, length: 300 * time.Millisecond}
	}
	if p.forwarders = chosen(*only); len(p.forwarders) == 0 {
		return fmt.Errorf("no forwarder is called %q", *only)
	}
	if _, err := bringBefore(*before); err != nil {
		return err
	}
	if *before != "" && *only == "" {
		p.forwarders = append(p.forwarders, matching(optionalForwarders(), "another ambi", func(f forwarder) string { return f.name })...)
	}
	p.rows = costlyRows()
	if *rows != "" {
		p.rows = matching(append(p.rows, optionalRows()...), *rows, func(r row) string { return r.key })
	}
	p.clients = matching(clients(), *from, func(c client) string { return c.key })
	if len(p.clients) == 0 {
		return fmt.Errorf("no client is called %q", *from)
	}
	return inWorld(func() error {
		p.holds = matching(holdRows(), *rows, func(r row) string { return r.key }) // by the limit of open files in there
		return p.run()
	})
}

// chosen are the forwarders whose names hold one of the parts.
func chosen(only string) []forwarder {
	if only == "" {
		return forwarders()
	}
	return matching(append(forwarders(), optionalForwarders()...), only, func(f forwarder) string { return f.name })
}

// matching keeps what has one of the comma-separated parts in its name.
func matching[T any](all []T, parts string, name func(T) string) []T {
	return slices.DeleteFunc(all, func(one T) bool {
		return !slices.ContainsFunc(strings.Split(parts, ","), func(part string) bool { return strings.Contains(name(one), part) })
	})
}

func (p *plan) run() error {
	r := p.emptyReport()
	for round := range p.rounds {
		for n := range p.forwarders {
			f := &p.forwarders[(n+round)%len(p.forwarders)] // nobody is always first
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, p.rounds, f.name)
			p.turn(r, f)
			if round < p.memoryRounds && len(f.programs) > 0 {
				p.memoryTurn(r, f)
			}
		}
	}
	return r.publication().publish(p.out, p.data)
}

func (p *plan) emptyReport() *report {
	r := &report{
		Title: "Forwarders", Machine: thisMachine(), Rounds: p.rounds, Subject: p.forwarders[0].name, Limit: openFiles(),
		Window: fmt.Sprintf("%s after %s", p.window.length, p.window.warm),
	}
	known := versions()
	for _, f := range p.forwarders {
		r.Columns = append(r.Columns, &column{Name: f.name, About: f.about, Version: known[f.name], SeenAs: map[string][]string{}})
	}
	for _, c := range p.clients {
		r.Sections = append(r.Sections, &section{Key: c.key, Title: c.title})
	}
	return r
}

func (r *report) column(name string) *column {
	for _, c := range r.Columns {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// turn measures every load row of one forwarder, from every client.
func (p *plan) turn(r *report, f *forwarder) {
	i, err := f.launch()
	if err != nil {
		p.failTurn(r, f, err)
		return
	}
	defer i.stop()
	m, err := i.memory()
	for n, c := range p.clients {
		if len(f.programs) > 0 {
			r.Sections[n].line(idleRow()).cell(f.name).add(m.Resident, err)
		}
		tcp, udp := c.seenAs(i)
		r.column(f.name).SeenAs[c.key] = []string{tcp, udp}
		p.loads(r.Sections[n], i, c)
	}
}

// failTurn notes a forwarder that does not even start in every row.
func (p *plan) failTurn(r *report, f *forwarder, err error) {
	fmt.Fprintf(os.Stderr, "  %s: %v\n", f.name, err)
	for _, s := range r.Sections {
		for _, row := range append([]row{idleRow()}, p.rows...) {
			s.line(row).cell(f.name).add(0, err)
		}
	}
}

// loads measures every load row from one client.
func (p *plan) loads(s *section, i *instance, c client) {
	for _, rows := range byLoad(p.rows) {
		for range max(1, rows[0].repeat) {
			found, err := c.measureCost(i, rows[0].window(p.window), rows[0].kind, rows[0].args...)
			if err != nil {
				fmt.Fprintf(os.Stderr, "  %s, %s: %s: %v\n", i.name, c.key, rows[0].key, err)
			}
			for _, row := range rows {
				in := s.line(row).cell(i.name)
				in.add(found[row.figure]*row.scale, err)
				in.Lost += found["failed"]
			}
		}
	}
}

// byLoad groups the rows that one load makes.
func byLoad(rows []row) [][]row {
	var groups [][]row
	for n, r := range rows {
		if n == 0 || r.kind != rows[n-1].kind || !slices.Equal(r.args, rows[n-1].args) {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], r)
	}
	return groups
}

// memoryTurn measures memory under connections and flows, each with an instance of
// its own.
func (p *plan) memoryTurn(r *report, f *forwarder) {
	for n, c := range p.clients {
		for _, row := range p.holds {
			in := r.Sections[n].line(row).cell(f.name)
			if in.Errors > 0 {
				continue // what cannot be held once takes long to fail again
			}
			if err := p.holdRow(in, f, c, row); err != nil {
				fmt.Fprintf(os.Stderr, "  %s, %s: %s: %v\n", f.name, c.key, row.key, err)
			}
		}
	}
}

func (p *plan) holdRow(in *cell, f *forwarder, c client, row row) error {
	i, err := f.launch()
	if err != nil {
		in.add(0, err)
		return err
	}
	defer i.stop()
	var m memory
	var memoryErr error
	found, err := c.held(i, row.kind, row.number, func() { m, memoryErr = i.memory() })
	if err == nil {
		err = memoryErr
	} else if found["held"] > 0 {
		err = fmt.Errorf("%w; %.0f MB with the other %.0f", err, m.Resident, found["held"])
	}
	in.add(m.Resident, err)
	return err
}
