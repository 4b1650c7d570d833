package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// panel is one small bar chart.
type panel struct {
	title, subtitle string
	unit            string
	lower           bool
	bars            []bar
}

// bar is one of them; note is written after its figure.
type bar struct {
	name, note    string
	value         float64
	accent, fails bool
}

// Measures of the picture, in pixels.
const (
	panelWidth  = 610
	panelGap    = 24
	barHeight   = 16
	barPitch    = 21
	nameWidth   = 225
	barWidth    = 190
	titleHeight = 46
	headHeight  = 98
)

// columnsOf is the panels by their subtitles, each a column of the picture.
func columnsOf(panels []panel) [][]panel {
	var columns [][]panel
	for _, p := range panels {
		if n := len(columns); n == 0 || columns[n-1][0].subtitle != p.subtitle {
			columns = append(columns, nil)
		}
		columns[len(columns)-1] = append(columns[len(columns)-1], p)
	}
	return columns
}

// says is false where everybody has the same 0, such as no loss.
func (p panel) says() bool {
	return slices.ContainsFunc(p.bars, func(b bar) bool { return b.fails || b.value > 0 })
}

func (p panel) height() int { return titleHeight + barPitch*len(p.bars) + panelGap }

// picture draws the panels as SVG, with colours for a light and a dark page.
func picture(title, subtitle, legend string, panels []panel) string {
	columns := columnsOf(panels)
	height := 0
	var body strings.Builder
	for n, column := range columns {
		x, y := panelGap+n*(panelWidth+panelGap), headHeight
		text(&body, x, y, "section", column[0].subtitle)
		y += 20
		for _, p := range column {
			p.draw(&body, x, y)
			y += p.height()
		}
		height = max(height, y)
	}
	width := max(1, len(columns))*(panelWidth+panelGap) + panelGap
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`+"\n", width, height, width, height, html.EscapeString(title))
	b.WriteString(pictureStyle)
	fmt.Fprintf(&b, `<rect class="page" width="%d" height="%d" rx="8"/>`+"\n", width, height)
	text(&b, panelGap, 30, "title", title)
	text(&b, panelGap, 50, "small", subtitle)
	text(&b, panelGap, 66, "small", legend)
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return b.String()
}

const pictureStyle = `<style>
text{font-family:system-ui,sans-serif;font-size:12px;fill:#24292f}
.title{font-size:19px;font-weight:600}.section{font-size:14px;font-weight:600}.head{font-weight:600}
.small{fill:#656d76;font-size:11px}.fails{fill:#cf222e}.end{text-anchor:end}
.page{fill:#fff}.bar{fill:#afb8c1}.accent{fill:#1a7f64}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#8d96a0}.fails{fill:#ff7b72}.page{fill:#0d1117}.bar{fill:#484f58}.accent{fill:#3fb68f}}
</style>
`

func text(b *strings.Builder, x, y int, class, what string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" class="%s">%s</text>`+"\n", x, y, class, html.EscapeString(what))
}

// draw draws the panel with its upper left corner at x, y.
func (p panel) draw(b *strings.Builder, x, y int) {
	longest := 0.0
	for _, bar := range p.bars {
		longest = max(longest, bar.value)
	}
	direction := "more is better"
	if p.lower {
		direction = "less is better"
	}
	text(b, x, y+14, "head", p.title)
	text(b, x, y+29, "small", p.unit+", "+direction)
	y += titleHeight - 8
	for _, bar := range p.bars {
		bar.draw(b, x, y, longest)
		y += barPitch
	}
}

func (r bar) draw(b *strings.Builder, x, y int, longest float64) {
	class, baseline := "bar", y+barHeight-4
	if r.accent {
		class = "accent"
	}
	text(b, x+nameWidth-8, baseline, "end", r.name)
	if r.fails {
		text(b, x+nameWidth, baseline, "fails", "fails")
		return
	}
	length := 1
	if longest > 0 {
		length = max(1, int(r.value/longest*barWidth))
	}
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" class="%s"/>`+"\n", x+nameWidth, y, length, barHeight, class)
	label := number(r.value)
	if r.note != "" {
		label += "  (" + r.note + ")"
	}
	text(b, x+nameWidth+length+6, baseline, "label", label)
}
