package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/e2e/chart"
)

// publication puts the ratios above the figures they come from.
func (r *report) publication() *publication {
	p := &publication{name: "forward", title: "ambi's rootlessport and its peers", data: r, legend: "Medians of one run, in brackets ambi's ratio to it.", intro: []string{
		r.Machine.String(),
		fmt.Sprintf("Medians of %d rounds in one run, in each of which every forwarder has its turn; bulk transfers are measured for %s, the other rows for half of that. "+
			"Forwarders, servers and clients share the machine: compare ratios, never absolute figures. At most %d open files a process.", r.Rounds, r.Window, r.Limit),
	}}
	for _, s := range r.Sections {
		p.tables = append(p.tables, r.ratios(s), r.medians(s))
		for _, l := range s.Lines {
			if panel := r.panel(l); says(panel) {
				p.show(s.Title, panel)
			}
		}
	}
	if slices.ContainsFunc(r.Columns, func(c *column) bool { return c.SeenAs != nil }) {
		p.tables = append(p.tables, r.addresses())
	}
	p.extract = r.extract()
	p.outro = append(r.failures(), r.configurations()...)
	return p
}

func (r *report) ratios(s *section) *table {
	t := &table{title: fmt.Sprintf("%s: %s ÷ peer (▼: %s is worse)", s.Title, r.Subject, r.Subject)}
	head := []string{""}
	for _, c := range r.Columns {
		if c.Name != r.Subject {
			head = append(head, c.Name)
		}
	}
	t.add(head...)
	for _, l := range s.Lines {
		cells := []string{l.Title + better(l)}
		for _, name := range head[1:] {
			cells = append(cells, r.ratio(l, name))
		}
		t.add(cells...)
	}
	return t
}

func better(l *line) string {
	if l.Lower {
		return " (less is better)"
	}
	return ""
}

func (r *report) ratio(l *line, name string) string {
	switch {
	case l.cell(name).Errors > 0 && l.cell(name).fails():
		return "peer fails"
	case l.cell(r.Subject).Errors > 0 && l.cell(r.Subject).fails():
		return "fails ▼"
	}
	return ratioText(l.ratio(r.Subject, name), l.Lower)
}

func (r *report) medians(s *section) *table {
	t := &table{title: s.Title + ": medians"}
	head := []string{"", "unit"}
	for _, c := range r.Columns {
		head = append(head, c.Name)
	}
	t.add(head...)
	for _, l := range s.Lines {
		cells := []string{l.Title, l.Unit}
		for _, c := range r.Columns {
			cells = append(cells, figure(l.Cells[c.Name]))
		}
		t.add(cells...)
	}
	return t
}

// figure is a median; ¹ says that some rounds failed.
func figure(c *cell) string {
	switch {
	case c == nil || c.fails() && c.Errors == 0:
		return "–"
	case c.fails():
		return "fails"
	case c.failure() != "":
		return chart.Number(c.Median) + " ¹"
	}
	return chart.Number(c.Median)
}

// addresses tells who keeps the client's address.
func (r *report) addresses() *table {
	t := &table{title: "The client's address, as the service sees it"}
	t.add("", "loopback, TCP", "loopback, UDP", "192.0.2.2, TCP", "192.0.2.2, UDP")
	for _, c := range r.Columns {
		cells := []string{c.Name}
		for _, from := range clients() {
			seen := c.SeenAs[from.key]
			if len(seen) != 2 {
				seen = []string{"–", "–"}
			}
			cells = append(cells, seen...)
		}
		t.add(cells...)
	}
	return t
}

// failures lists what did not work, with its error.
func (r *report) failures() []string {
	var list []string
	for _, s := range r.Sections {
		for _, l := range s.Lines {
			for _, c := range r.Columns {
				if cell := l.Cells[c.Name]; cell != nil && cell.failure() != "" {
					list = append(list, fmt.Sprintf("- %s, %s, %s: %s", c.Name, s.Key, l.Title, cell.failure()))
				}
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	return append(append([]string{"### Failures (¹)", ""}, list...), "")
}

// failure tells what went wrong in a cell; empty for nothing.
func (c *cell) failure() string {
	switch {
	case c.Errors > 0:
		return fmt.Sprintf("failed %d of %d times: %s", c.Errors, c.Errors+len(c.Values), c.Error)
	case c.Lost > 0:
		return fmt.Sprintf("%.0f single connections failed", c.Lost)
	}
	return ""
}

func (r *report) configurations() []string {
	list := []string{"### Who is who", ""}
	for _, c := range r.Columns {
		list = append(list, strings.TrimSuffix(fmt.Sprintf("- %s: %s; %s", c.Name, c.About, c.Version), "; "))
	}
	return list
}

// extract is six rows that say the most, of a client of another host; nil when they
// were not measured.
func (r *report) extract() *chart.Picture {
	columns := [][]string{{"tcp_up", "tcp_down", "memory_idle"}, {"connections_1", "udp_echo", "round_trip_p50"}}
	p := &chart.Picture{Title: "Published ports without root, a client on another host", Notes: []string{
		r.Machine.String(), "Medians of one run in turns, in brackets ambi's ratio to it.",
	}}
	for _, keys := range columns {
		c := chart.Column{}
		for _, key := range keys {
			l := r.row("neighbour", key)
			if l == nil {
				return nil
			}
			c.Panels = append(c.Panels, r.panel(l))
		}
		p.Columns = append(p.Columns, c)
	}
	return p
}

func (r *report) row(section, key string) *line {
	for _, s := range r.Sections {
		for _, l := range s.Lines {
			if s.Key == section && l.Key == key {
				return l
			}
		}
	}
	return nil
}

// says is false where everybody has the same 0, such as no loss.
func says(p chart.Bars) bool {
	return slices.ContainsFunc(p.Bars, func(b chart.Bar) bool { return b.Fails || b.Value > 0 })
}

func (r *report) panel(l *line) chart.Bars {
	p := chart.Bars{Title: l.Title, Unit: l.Unit, LessIsBetter: l.Lower}
	for _, c := range r.Columns {
		cell := l.Cells[c.Name]
		if cell == nil || cell.fails() && cell.Errors == 0 {
			continue
		}
		b := chart.Bar{Name: c.Name, Value: cell.Median, Accent: c.Name == r.Subject, Fails: cell.fails()}
		if ratio := l.ratio(r.Subject, c.Name); c.Name != r.Subject && ratio != 0 {
			b.Note = fmt.Sprintf("%.2f×", ratio)
		}
		p.Bars = append(p.Bars, b)
	}
	return p
}
