package chart

import (
	"fmt"
	"strings"
)

// Lines is a panel of values over time.
type Lines struct {
	Title, Unit string
	Lines       []Line
}

// Line is one of them: points of seconds and value.
type Line struct {
	Name   string
	Points [][2]float64
}

const (
	axisWidth  = 64 // for the figures beside the vertical axis
	plotWidth  = panelWidth - axisWidth
	plotHeight = 150
)

func (p Lines) height() int { return titleHeight + plotHeight + 20 }

func (p Lines) draw(b *strings.Builder, x, y int) {
	right, top := 1.0, 1.0
	for _, l := range p.Lines {
		for _, point := range l.Points {
			right, top = max(right, point[0]), max(top, point[1])
		}
	}
	top = niceTop(top)
	text(b, x, y+14, "head", p.Title)
	p.legend(b, x, y+30)
	x, y = x+axisWidth, y+titleHeight
	const ticks = 4
	for i := range ticks + 1 {
		at := y + plotHeight - plotHeight*i/ticks
		fmt.Fprintf(b, `<line class="grid" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", x, at, x+plotWidth, at)
		text(b, x-6, at+4, "small end", strings.TrimSpace(fmt.Sprintf("%g %s", top*float64(i)/ticks, p.Unit)))
		text(b, x+plotWidth*i/ticks, y+plotHeight+15, "small middle", minutes(right*float64(i)/ticks))
	}
	for i, l := range p.Lines {
		var path strings.Builder
		for _, point := range l.Points {
			fmt.Fprintf(&path, "%.1f,%.1f ", float64(x)+plotWidth*point[0]/right, float64(y)+plotHeight*(1-point[1]/top))
		}
		fmt.Fprintf(b, `<polyline class="%s" points="%s"/>`+"\n", lineClass(i), strings.TrimSpace(path.String()))
	}
}

// lineClass has a colour; people who see none tell the lines apart by their order in
// the legend and their lightness.
func lineClass(i int) string { return fmt.Sprintf("line%d", i%5) }

func (p Lines) legend(b *strings.Builder, x, y int) {
	for i, l := range p.Lines {
		fmt.Fprintf(b, `<line class="%s" stroke-width="3" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", lineClass(i), x, y-4, x+10, y-4)
		text(b, x+14, y, "small", l.Name)
		x += 30 + 6*len(l.Name)
	}
}

func minutes(seconds float64) string {
	return fmt.Sprintf("%d:%02d", int(seconds)/60, int(seconds)%60)
}
