package main

import (
	"fmt"
	"strings"

	"github.com/ambi-cni/ambi/e2e/chart"
)

func (p *costPlan) publication() *publication {
	m := thisMachine()
	pub := &publication{name: "cost", title: "What ambi costs", legend: "Medians of one run, in brackets the ratio of the upper to the lower and what it shall be.", intro: []string{
		m.String(),
		fmt.Sprintf("Medians of %d times (%d for what takes seconds) in one run, the two sides of a row in turns. Compare ratios, never absolute figures.", p.times, p.slow),
	}}
	known := versions()
	pub.data = map[string]any{"machine": m, "times": p.times, "slowTimes": p.slow, "containers": p.seed, "comparisons": p.comparisons, "ambi": known["ambi"]}
	t := &table{}
	for _, c := range p.comparisons {
		if t.title != c.Section {
			t = &table{title: c.Section}
			t.add(append([]string{"", "of", "median", "over", "median", "unit", "ratio", "target"}, c.Use.head()...)...)
			pub.tables = append(pub.tables, t)
		}
		t.add(append([]string{c.Title, c.Subject, figure(&c.A), c.Other, figure(&c.B), c.Unit, c.ratioText(), c.target()}, c.Use.cells()...)...)
		pub.show(c.chapter(), c.panel())
	}
	pub.outro = []string{"### Versions", "", "- " + known["ambi"], "- " + known["slirp4netns"], "- standard plugins 1.9.1, cnitool 1.3.0", "- podman " + packaged("podman"), "- containerd 2.4.2, crictl 1.37.0"}
	return pub
}

func (u *use) head() []string {
	if u == nil {
		return nil
	}
	return []string{"processor time, ms", "programs"}
}

func (u *use) cells() []string {
	if u == nil {
		return nil
	}
	return []string{
		fmt.Sprintf("%s to %s", figure(&u.ProcessorA), figure(&u.ProcessorB)),
		fmt.Sprintf("%d to %d", u.ProgramsA, u.ProgramsB),
	}
}

func (c *comparison) ratioText() string {
	if c.ratio() == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", c.ratio())
}

func (c *comparison) target() string {
	text, missed := "–", false
	switch {
	case c.Target > 0:
		text, missed = fmt.Sprintf("≤ %.2f", c.Target), c.ratio() > c.Target
	case c.Margin > 0:
		text, missed = fmt.Sprintf("≤ +%s %s", chart.Number(c.Margin), c.Unit), c.A.Median-c.B.Median > c.Margin
	case c.None:
		text, missed = "0", c.A.Median > 0
	case c.Limit > 0:
		text, missed = fmt.Sprintf("≤ %s %s", chart.Number(c.Limit), c.Unit), c.A.Median > c.Limit
	}
	if missed {
		return text + ", missed"
	}
	return text
}

func (c *comparison) panel() chart.Panel {
	p := chart.Bars{Title: c.Title, Unit: c.Unit, LessIsBetter: true}
	note := ""
	if c.ratio() != 0 {
		note = c.ratioText() + "×"
	}
	if c.target() != "–" {
		note = strings.TrimPrefix(note+"; "+c.target(), "; ")
	}
	p.Bars = []chart.Bar{{Name: c.Subject, Value: c.A.Median, Accent: true, Note: note, Fails: c.A.fails()}}
	if !c.B.fails() {
		p.Bars = append(p.Bars, chart.Bar{Name: c.Other, Value: c.B.Median})
	}
	return p
}

// chapter is the column of the picture.
func (c *comparison) chapter() string {
	switch c.Section {
	case everyCall, withoutRoot:
		return withoutRoot
	case asRoot:
		return asRoot
	}
	return "As root"
}
