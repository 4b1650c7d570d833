// Package chart draws the figures of benchmarks and soaks as one SVG: columns of small
// panels, each of them bars or lines, readable on a light and on a dark page.
package chart

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Panel is one small chart.
type Panel interface {
	height() int
	draw(b *strings.Builder, x, y int)
}

// Column is a column of panels below its title.
type Column struct {
	Title  string
	Panels []Panel
}

// Picture is the whole; Notes are small lines below the title.
type Picture struct {
	Title   string
	Notes   []string
	Columns []Column
}

// Measures of the picture, in pixels.
const (
	panelWidth  = 610
	gap         = 24
	titleHeight = 46 // of a panel: its title and unit
)

const style = `<style>
text{font-family:system-ui,sans-serif;font-size:12px;fill:#24292f}
.title{font-size:19px;font-weight:600}.section{font-size:14px;font-weight:600}.head{font-weight:600}
.small{fill:#656d76;font-size:11px}.fails{fill:#cf222e}.end{text-anchor:end}.middle{text-anchor:middle}
.page{fill:#fff}.bar{fill:#afb8c1}.accent{fill:#1a7f64}.grid{stroke:#d1d9e0}
polyline{fill:none;stroke-width:1.6}
.line0{stroke:#1b4f72}.line1{stroke:#2e9e6b}.line2{stroke:#c0392b}.line3{stroke:#d68910}.line4{stroke:#7d3c98}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#8d96a0}.fails{fill:#ff7b72}.page{fill:#0d1117}.bar{fill:#484f58}.accent{fill:#3fb68f}.grid{stroke:#30363d}
.line0{stroke:#79b8ff}.line4{stroke:#b392f0}}
</style>
`

// SVG is the picture as a document.
func (p Picture) SVG() string {
	top := 46 + 16*len(p.Notes) + gap
	height := top
	var body strings.Builder
	for n, column := range p.Columns {
		x, y := gap+n*(panelWidth+gap), top
		text(&body, x, y, "section", column.Title)
		y += 20
		for _, panel := range column.Panels {
			panel.draw(&body, x, y)
			y += panel.height() + gap
		}
		height = max(height, y)
	}
	width := max(1, len(p.Columns))*(panelWidth+gap) + gap
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`+"\n", width, height, width, height, html.EscapeString(p.Title))
	b.WriteString(style)
	fmt.Fprintf(&b, `<rect class="page" width="%d" height="%d" rx="8"/>`+"\n", width, height)
	text(&b, gap, 30, "title", p.Title)
	for i, note := range p.Notes {
		text(&b, gap, 50+16*i, "small", note)
	}
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return b.String()
}

func text(b *strings.Builder, x, y int, class, what string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" class="%s">%s</text>`+"\n", x, y, class, html.EscapeString(what))
}

// Number writes a figure with three digits that count.
func Number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return fmt.Sprintf("%.4f", v)
	case v < 1:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// niceTop is a round number not below v, which is above 0.
func niceTop(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 4, 6, 8, 10} {
		if v <= f*unit {
			return f * unit
		}
	}
	return 10 * unit
}
