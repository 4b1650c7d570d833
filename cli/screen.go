package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is what an output is: a terminal that somebody looks at, or a pipe or a
// file, which gets whole texts without colour.
type screen struct {
	terminal bool
	width    int // columns of a terminal; 0: any
	colour   bool
	ink      string // of the output, see people
}

func screenOf(f *os.File) screen {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return screen{}
	}
	s := screen{terminal: true, width: int(size.Col), colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		s.width = n
	}
	if s.width == 0 {
		s.width = 80
	}
	if s.colour {
		s.ink = newInk()
	}
	return s
}

// style is an ANSI sequence; empty for none.
type style string

const (
	plain  style = ""
	bold   style = "\x1b[1m"
	red    style = "\x1b[31m"
	green  style = "\x1b[32m"
	yellow style = "\x1b[33m"
)

func (s screen) paint(how style, text string) string {
	if !s.colour || how == plain || text == "" {
		return text
	}
	return s.ink + string(how) + text + s.ink + "\x1b[0m"
}

// wrapped breaks a text at blanks to fit behind an indent, which its further lines
// get.
func (s screen) wrapped(text string, indent int) string {
	room := s.width - indent
	if s.width == 0 || room < 20 {
		return strings.ReplaceAll(text, "\n", " ")
	}
	var b strings.Builder
	used := 0
	for i, word := range strings.Fields(text) {
		length := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case used+1+length > room:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			used = 0
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += length
	}
	return b.String()
}

// cell is one field of a table.
type cell struct {
	text string
	how  style
}

func cells(texts ...string) []cell {
	row := make([]cell, len(texts))
	for i, t := range texts {
		row[i].text = t
	}
	return row
}

// table is aligned columns. On a terminal that is too narrow the columns in narrow
// are cut, the first one first, down to the length given.
type table struct {
	head   []string
	right  map[int]bool // numbers
	narrow []limit
	rows   [][]cell
}

type limit struct{ column, least int }

func (t *table) add(row []cell) {
	for i := range row {
		row[i].text = printable(row[i].text)
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// printable keeps a name in its line and its column.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return '?'
		}
		return visible(r)
	}, s)
}

const gap = 2 // between columns

func (t *table) print(out io.Writer, s screen) {
	widths := t.widths(s)
	t.printRow(out, s, widths, cells(t.head...), bold)
	for _, row := range t.rows {
		t.printRow(out, s, widths, row, plain)
	}
}

func (t *table) widths(s screen) []int {
	widths := make([]int, len(t.head))
	for i, text := range t.head {
		widths[i] = utf8.RuneCountInString(text)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	if s.width == 0 {
		return widths
	}
	over := gap * (len(widths) - 1)
	for _, w := range widths {
		over += w
	}
	over -= s.width
	for _, n := range t.narrow {
		cut := min(max(over, 0), max(widths[n.column]-n.least, 0))
		widths[n.column] -= cut
		over -= cut
	}
	return widths
}

func (t *table) printRow(out io.Writer, s screen, widths []int, row []cell, how style) {
	var b strings.Builder
	for i, c := range row {
		text := shortened(c.text, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
		if c.how == plain {
			c.how = how
		}
		text = s.paint(c.how, text)
		switch last := i == len(row)-1; {
		case t.right[i]:
			b.WriteString(pad + text)
		case last:
			b.WriteString(text)
		default:
			b.WriteString(text + pad)
		}
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", gap))
		}
	}
	fmt.Fprintln(out, strings.TrimRight(b.String(), " "))
}

func shortened(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:max(most-1, 0)]) + "…"
}

// printJSON prints a document as it is, without escapes for the web.
func printJSON(out io.Writer, document any) error {
	e := json.NewEncoder(programs(out))
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(document)
}

// bytesText is a number of bytes for people: 1.5 MiB.
func bytesText(n uint64) string {
	const kilo = 1024
	if n < kilo {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= kilo && unit < 6 {
		value /= kilo
		unit++
	}
	text := fmt.Sprintf("%.1f", value)
	if value >= 99.95 {
		text = fmt.Sprintf("%.0f", value)
	}
	return text + " " + "KMGTPE"[unit-1:unit] + "iB"
}

// ageText is how long ago something was, in its largest unit.
func ageText(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d d", d/day)
}

// progress says what goes on when it takes longer than a second and somebody looks.
// The function that it returns ends it.
func (a *app) progress(format string, args ...any) (done func()) {
	if !a.messages.terminal {
		return func() {}
	}
	shown := make(chan bool, 1)
	timer := time.AfterFunc(time.Second, func() {
		fmt.Fprintf(a.errOut, "%s …\n", fmt.Sprintf(format, args...))
		shown <- true
	})
	return func() {
		if !timer.Stop() {
			<-shown
		}
	}
}
