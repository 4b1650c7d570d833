package main

import (
	"fmt"
	"strings"
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
			t.add("", "of", "median", "over", "median", "unit", "ratio", "target")
			pub.tables = append(pub.tables, t)
		}
		t.add(c.Title, c.Subject, figure(&c.A), c.Other, figure(&c.B), c.Unit, c.ratioText(), c.target())
		pub.panels = append(pub.panels, c.panel())
	}
	pub.outro = []string{"### Versions", "", "- " + known["ambi"], "- " + known["slirp4netns"], "- standard plugins 1.9.1, cnitool 1.3.0", "- podman " + packaged("podman")}
	return pub
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
		text, missed = fmt.Sprintf("≤ +%s %s", number(c.Margin), c.Unit), c.A.Median-c.B.Median > c.Margin
	case c.None:
		text, missed = "0", c.A.Median > 0
	case c.Limit > 0:
		text, missed = fmt.Sprintf("≤ %s %s", number(c.Limit), c.Unit), c.A.Median > c.Limit
	}
	if missed {
		return text + ", missed"
	}
	return text
}

func (c *comparison) panel() panel {
	p := panel{title: c.Title, subtitle: c.chapter(), unit: c.Unit, lower: true}
	note := ""
	if c.ratio() != 0 {
		note = c.ratioText() + "×"
	}
	if c.target() != "–" {
		note = strings.TrimPrefix(note+"; "+c.target(), "; ")
	}
	p.bars = []bar{{name: c.Subject, value: c.A.Median, accent: true, note: note, fails: c.A.fails()}}
	if !c.B.fails() {
		p.bars = append(p.bars, bar{name: c.Other, value: c.B.Median})
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
