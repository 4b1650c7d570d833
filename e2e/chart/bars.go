package chart

import (
	"fmt"
	"strings"
)

// Bars is a panel of horizontal bars, one below the other.
type Bars struct {
	Title, Unit  string
	LessIsBetter bool
	Bars         []Bar
}

// Bar is one of them; Note is written behind its figure. One that Fails has none.
type Bar struct {
	Name, Note    string
	Value         float64
	Accent, Fails bool
}

const (
	barHeight = 16
	barPitch  = 21
	nameWidth = 225
	barWidth  = 190
)

func (p Bars) height() int { return titleHeight + barPitch*len(p.Bars) }

func (p Bars) draw(b *strings.Builder, x, y int) {
	longest := 0.0
	for _, bar := range p.Bars {
		longest = max(longest, bar.Value)
	}
	direction := "more is better"
	if p.LessIsBetter {
		direction = "less is better"
	}
	text(b, x, y+14, "head", p.Title)
	text(b, x, y+29, "small", p.Unit+", "+direction)
	y += titleHeight - 8
	for _, bar := range p.Bars {
		bar.draw(b, x, y, longest)
		y += barPitch
	}
}

func (r Bar) draw(b *strings.Builder, x, y int, longest float64) {
	class, baseline := "bar", y+barHeight-4
	if r.Accent {
		class = "accent"
	}
	text(b, x+nameWidth-8, baseline, "end", r.Name)
	if r.Fails {
		text(b, x+nameWidth, baseline, "fails", "fails")
		return
	}
	length := 1
	if longest > 0 {
		length = max(1, int(r.Value/longest*barWidth))
	}
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" class="%s"/>`+"\n", x+nameWidth, y, length, barHeight, class)
	label := Number(r.Value)
	if r.Note != "" {
		label += "  (" + r.Note + ")"
	}
	text(b, x+nameWidth+length+6, baseline, "label", label)
}
