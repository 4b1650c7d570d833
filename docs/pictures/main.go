// Command pictures draws the pictures of docs: an .svg beside each .txt of its
// folder. "go generate ./docs/pictures" runs it, and a test of docs fails when a picture
// is not what its text says.
//
// A text has one instruction a line; "#" starts a comment. The first is "sequence" or
// "boxes WIDTH HEIGHT", the kind of the picture; "title" names it for those who cannot see
// it.
//
// A sequence shows who asks whom for what, one below the other:
//
//	who NAME: TITLE            somebody, from left to right
//	NAME > NAME: TEXT          asks, or hands over; a dotted ">>" answers
//	NAME: TEXT                 does something by itself
//	line: TEXT                 a line across everything
//
// Boxes are put by coordinates:
//
//	box X Y W H [CLASS]: TITLE | LINE | …
//	arrow X,Y X,Y … [CLASS]: TEXT      with the text above its middle
//	text X Y [CLASS]: TEXT
package main

//go:generate go run .

import (
	"errors"
	"fmt"
	"html"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("pictures: ")
	texts, err := filepath.Glob("*.txt")
	if err == nil && len(texts) == 0 {
		err = errors.New("no .txt in this folder")
	}
	for _, text := range texts {
		if err == nil {
			err = draw(text, strings.TrimSuffix(text, ".txt")+".svg")
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

func draw(text, picture string) error {
	b, err := os.ReadFile(text)
	if err != nil {
		return err
	}
	svg, err := render(string(b))
	if err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	return os.WriteFile(picture, []byte(svg), 0o644)
}

// instruction is one line: what stands before the colon, in words, and after it.
type instruction struct {
	words []string
	text  string
}

func (in instruction) is(word string) bool { return in.words[0] == word }

func render(text string) (string, error) {
	p := &picture{}
	var instructions []instruction
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		head, rest, _ := strings.Cut(line, ": ")
		in := instruction{strings.Fields(strings.TrimSuffix(head, ":")), strings.TrimSpace(rest)}
		if in.is("title") {
			p.title = in.text
			continue
		}
		instructions = append(instructions, in)
	}
	if len(instructions) == 0 {
		return "", errors.New("it is empty")
	}
	kind, rest := instructions[0], instructions[1:]
	var err error
	switch {
	case kind.is("sequence"):
		err = p.sequence(rest)
	case kind.is("boxes") && len(kind.words) == 3:
		if _, err = fmt.Sscan(strings.Join(kind.words[1:], " "), &p.width, &p.height); err == nil {
			err = p.boxes(rest)
		}
	default:
		err = fmt.Errorf("unknown kind of picture %q", kind.words)
	}
	return p.svg(), err
}

// picture collects what is drawn.
type picture struct {
	title         string
	width, height int
	body          strings.Builder
}

func (p *picture) add(format string, args ...any) {
	fmt.Fprintf(&p.body, "  "+format+"\n", args...)
}

// Pictures have a ground of their own, so that they read the same on a dark page.
const style = `
    text { font: 13px ui-sans-serif, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #1f2328 }
    .ground { fill: #ffffff; stroke: #d1d9e0 }
    .box { fill: #f6f8fa; stroke: #818b98 }
    .host { fill: #ddf4ff; stroke: #0969da }
    .container { fill: #fff8c5; stroke: #bf8700 }
    .ours { fill: #dafbe1; stroke: #1a7f37 }
    .gone { fill: #ffffff; stroke: #818b98; stroke-dasharray: 4 3 }
    .head { font-weight: 600 }
    .small { font-size: 12px; fill: #59636e }
    .code { white-space: pre; font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
    .life { stroke: #d1d9e0; stroke-width: 1.5 }
    .arrow { fill: none; stroke: #1f2328; stroke-width: 1.4; marker-end: url(#tip) }
    .back { stroke-dasharray: 4 3 }
    .rule { stroke: #cf222e; stroke-width: 1.2; stroke-dasharray: 7 4 }
    .ruletext { fill: #cf222e; font-size: 12px }
`

func (p *picture) svg() string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="%s">
  <title>%s</title>
  <style>%s  </style>
  <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="#1f2328"/></marker>
  <rect class="ground" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>
%s</svg>
`, p.width, p.height, p.width, p.height, html.EscapeString(p.title), html.EscapeString(p.title), style, p.width-1, p.height-1, p.body.String())
}

func (p *picture) text(x, y int, anchor, class, text string) {
	if class != "" {
		class = fmt.Sprintf(` class="%s"`, class)
	}
	if anchor != "start" {
		class += fmt.Sprintf(` text-anchor="%s"`, anchor)
	}
	p.add(`<text x="%d" y="%d"%s>%s</text>`, x, y, class, html.EscapeString(text))
}

// width of a text in its font, about: enough to leave room for it.
func width(text string) int { return len([]rune(text)) * 13 / 2 }

// The measures of a sequence.
const (
	margin  = 14
	headTop = 14
	headBox = 34
	step    = 36
)

// sequence draws who asks whom for what.
func (p *picture) sequence(ins []instruction) error {
	const total = 880
	var names, titles []string
	for _, in := range ins {
		if in.is("who") {
			names, titles = append(names, in.words[1]), append(titles, in.text)
		}
	}
	if len(names) < 2 {
		return errors.New("a sequence has two participants or more")
	}
	column := (total - 2*margin) / len(names)
	at := func(name string) int { return margin + column/2 + slices.Index(names, name)*column }
	steps := len(ins) - len(names)
	p.width, p.height = total, headTop+headBox+steps*step+32
	for i, title := range titles {
		x := at(names[i])
		p.add(`<line class="life" x1="%d" y1="%d" x2="%d" y2="%d"/>`, x, headTop+headBox, x, p.height-12)
		p.add(`<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="5"/>`, classOf(names[i]), x-column/2+6, headTop, column-12, headBox)
		p.text(x, headTop+22, "middle", "head", title)
	}
	y := headTop + headBox
	for _, in := range ins {
		if in.is("who") {
			continue
		}
		y += step
		switch {
		case in.is("line"):
			p.add(`<line class="rule" x1="%d" y1="%d" x2="%d" y2="%d"/>`, margin, y, p.width-margin, y)
			p.text(p.width-margin-4, y-6, "end", "ruletext", in.text)
		case len(in.words) == 1 && slices.Contains(names, in.words[0]):
			p.own(at(in.words[0]), y, in.text)
		case len(in.words) == 3 && slices.Contains(names, in.words[0]) && slices.Contains(names, in.words[2]):
			p.message(at(in.words[0]), at(in.words[2]), y, in)
		default:
			return fmt.Errorf("cannot read %q", in.words)
		}
	}
	return nil
}

// classOf gives ambi's own parts their colour.
func classOf(name string) string {
	switch name {
	case "ambi", "supervisor":
		return "ours"
	case "container":
		return "container"
	}
	return "host"
}

// label writes a text on white, so that no line crosses it.
func (p *picture) label(x, y int, anchor, text string) {
	w := width(text) + 8
	left := map[string]int{"middle": x - w/2, "start": x - 4, "end": x - w + 4}[anchor]
	p.add(`<rect x="%d" y="%d" width="%d" height="17" fill="#ffffff" fill-opacity="0.9"/>`, left, y-13, w)
	p.text(x, y, anchor, "", text)
}

func (p *picture) own(x, y int, text string) {
	p.add(`<rect class="ours" x="%d" y="%d" width="9" height="22" rx="2"/>`, x-4, y-16)
	p.label(x+12, y, "start", text)
}

func (p *picture) message(from, to, y int, in instruction) {
	class := "arrow"
	if in.words[1] == ">>" {
		class += " back"
	}
	// Beside the start, where there is the most room to read on.
	if from < to {
		p.label(from+10, y-5, "start", in.text)
	} else {
		p.label(from-10, y-5, "end", in.text)
	}
	p.add(`<path class="%s" d="M%d %d L%d %d"/>`, class, from, y, to, y)
}

// boxes draws what is put by coordinates.
func (p *picture) boxes(ins []instruction) error {
	for _, in := range ins {
		var err error
		switch {
		case in.is("box"):
			err = p.box(in)
		case in.is("arrow"):
			err = p.arrow(in)
		case in.is("text"):
			err = p.words(in)
		default:
			err = errors.New("unknown instruction")
		}
		if err != nil {
			return fmt.Errorf("%q: %w", in.words, err)
		}
	}
	return nil
}

func (p *picture) box(in instruction) error {
	var x, y, w, h int
	if len(in.words) < 5 {
		return errors.New("a box has X Y W H")
	}
	if _, err := fmt.Sscan(strings.Join(in.words[1:5], " "), &x, &y, &w, &h); err != nil {
		return err
	}
	class := "box"
	if len(in.words) > 5 {
		class = in.words[5]
	}
	p.add(`<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="6"/>`, class, x, y, w, h)
	for i, line := range strings.Split(in.text, " | ") {
		if i == 0 {
			p.text(x+10, y+20, "start", "head", line)
		} else {
			p.line(x+10, y+20+i*17, "start", line)
		}
	}
	return nil
}

// line is smaller, and code when it is in backquotes.
func (p *picture) line(x, y int, anchor, text string) {
	if code, is := strings.CutPrefix(text, "`"); is {
		p.text(x, y, anchor, "code", strings.TrimSuffix(code, "`"))
		return
	}
	p.text(x, y, anchor, "small", text)
}

func (p *picture) arrow(in instruction) error {
	var points [][2]int
	class := "arrow"
	for _, word := range in.words[1:] {
		var x, y int
		if _, err := fmt.Sscanf(word, "%d,%d", &x, &y); err != nil {
			class += " " + word
			continue
		}
		points = append(points, [2]int{x, y})
	}
	if len(points) < 2 {
		return errors.New("an arrow has two points or more")
	}
	var d strings.Builder
	for i, at := range points {
		fmt.Fprintf(&d, "%c%d %d ", "ML"[min(i, 1)], at[0], at[1])
	}
	p.add(`<path class="%s" d="%s"/>`, class, strings.TrimSpace(d.String()))
	if in.text != "" {
		a, b := points[(len(points)-1)/2], points[(len(points)-1)/2+1]
		p.line((a[0]+b[0])/2, (a[1]+b[1])/2-6, "middle", in.text)
	}
	return nil
}

func (p *picture) words(in instruction) error {
	var x, y int
	if len(in.words) < 3 {
		return errors.New("a text has X Y")
	}
	if _, err := fmt.Sscan(strings.Join(in.words[1:3], " "), &x, &y); err != nil {
		return err
	}
	p.line(x, y, "start", in.text)
	return nil
}
