package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The picture: a column for each mode, and in it the time of the verbs, memory and
// descriptors over the run.
const (
	panelWidth, panelHeight = 420.0, 150.0
	marginLeft, marginTop   = 64.0, 56.0
	gapX, gapY              = 84.0, 66.0
)

// colours of the lines, to be told apart by people who see none, too, by their order
// in the legend and their lightness.
var colours = []string{"#1b4f72", "#2e9e6b", "#c0392b", "#d68910", "#7d3c98"}

// line is one line of a panel.
type line struct {
	name   string
	points [][2]float64
}

type panel struct {
	title string
	unit  string
	lines []line
}

func draw(runs []*outcome) string {
	var b strings.Builder
	const rows = 3
	width := marginLeft + float64(len(runs))*(panelWidth+gapX)
	height := marginTop + rows*(panelHeight+gapY)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="11" fill="#333">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%.0f" height="%.0f" fill="#fff"/>`+"\n", width, height)
	for column, o := range runs {
		x := marginLeft + float64(column)*(panelWidth+gapX)
		fmt.Fprintf(&b, `<text x="%.1f" y="20" font-size="15" font-weight="bold">as %s</text>`+"\n", x, o.Mode)
		for row, p := range o.panels() {
			p.draw(&b, x, marginTop+float64(row)*(panelHeight+gapY))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// panels are the three pictures of a run.
func (o *outcome) panels() []panel {
	times := panel{title: "time of a verb, median of a fortieth of the run", unit: "ms"}
	memory := panel{title: "memory, resident", unit: "MB"}
	for _, verb := range verbs {
		times.lines = append(times.lines, line{verb, o.overTime(verb)})
	}
	open := panel{title: "descriptors, and numbers of things", unit: ""}
	series := func(of func(sample) float64) (points [][2]float64) {
		for _, s := range o.Samples {
			if v := of(s); v > 0 {
				points = append(points, [2]float64{s.At, v})
			}
		}
		return points
	}
	memory.lines = append(memory.lines, line{"verbs at work, median", series(func(s sample) float64 { return s.Verbs / 1e6 })})
	if o.Mode == "rootless" {
		memory.lines = append(memory.lines,
			line{"oldest supervisor", series(func(s sample) float64 { return s.Resident / 1e6 })},
			line{"all supervisors, median", series(func(s sample) float64 { return s.Median / 1e6 })})
		open.lines = append(open.lines,
			line{"of the oldest supervisor", series(func(s sample) float64 { return float64(s.Descriptors) })},
			line{"supervisors", series(func(s sample) float64 { return float64(s.Supervisors) })})
	}
	open.lines = append(open.lines,
		line{"of all processes", series(func(s sample) float64 { return float64(s.Open) })},
		line{"files of state", series(func(s sample) float64 { return float64(s.Files) })})
	return []panel{times, memory, open}
}

// lasted is when the last verb ended, in seconds.
func (o *outcome) lasted() (end float64) {
	for _, t := range o.Timings {
		end = max(end, t.At)
	}
	return end
}

// overTime are the medians of a verb's successful calls, in milliseconds, in forty
// parts of the run.
func (o *outcome) overTime(verb string) (points [][2]float64) {
	const parts = 40
	end := o.lasted()
	var in [parts][]float64
	for _, t := range o.Timings {
		if t.Verb == verb && t.OK && end > 0 {
			i := min(parts-1, int(t.At/end*parts))
			in[i] = append(in[i], 1000*t.Took)
		}
	}
	for i, values := range in {
		if len(values) > 0 {
			points = append(points, [2]float64{(float64(i) + 0.5) / parts * end, median(values)})
		}
	}
	return points
}

func (p panel) draw(b *strings.Builder, x, y float64) {
	right, top := 1.0, 1.0
	for _, l := range p.lines {
		for _, point := range l.points {
			right, top = max(right, point[0]), max(top, point[1])
		}
	}
	top = niceTop(top)
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" font-weight="bold">%s</text>`+"\n", x, y-22, html.EscapeString(p.title))
	const ticks = 4
	for i := range ticks + 1 {
		at := y + panelHeight*(1-float64(i)/ticks)
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n",
			x, at, x+panelWidth, at, x-6, at+4, strings.TrimSpace(fmt.Sprintf("%g %s", top*float64(i)/ticks, p.unit)))
		along := x + panelWidth*float64(i)/ticks
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", along, y+panelHeight+15, minutes(right*float64(i)/ticks))
	}
	legend := x
	for i, l := range p.lines {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for _, point := range l.points {
			fmt.Fprintf(&path, "%.1f,%.1f ", x+panelWidth*point[0]/right, y+panelHeight*(1-point[1]/top))
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.6"/>`+"\n", strings.TrimSpace(path.String()), colour)
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="10" height="3" fill="%s"/><text x="%.1f" y="%.1f">%s</text>`+"\n",
			legend, y-10, colour, legend+14, y-6, html.EscapeString(l.name))
		legend += 30 + 5.9*float64(len(l.name))
	}
}

// niceTop is a round number not below the greatest value.
func niceTop(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 4, 6, 8, 10} {
		if v <= f*unit {
			return f * unit
		}
	}
	return 10 * unit
}

func minutes(seconds float64) string {
	return fmt.Sprintf("%d:%02d", int(seconds)/60, int(seconds)%60)
}
