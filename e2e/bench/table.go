package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// table is text in rows and columns; the first row is the head.
type table struct {
	title string
	rows  [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// text is for terminals: columns aligned, numbers to the right.
func (t *table) text() string {
	var widths []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", t.title)
	for _, r := range t.rows {
		for i, c := range r {
			fill := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i == 0 {
				b.WriteString("  " + c + fill)
			} else {
				b.WriteString("  " + fill + c)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (t *table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", t.title)
	for n, r := range t.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
		if n == 0 {
			fmt.Fprintf(&b, "|---|%s\n", strings.Repeat("---:|", len(r)-1))
		}
	}
	b.WriteByte('\n')
	return b.String()
}

// ratioText marks a ratio by which the subject is worse.
func ratioText(ratio float64, lower bool) string {
	switch {
	case ratio == 0:
		return "–"
	case lower == (ratio > 1) && ratio != 1:
		return fmt.Sprintf("%.2f ▼", ratio)
	}
	return fmt.Sprintf("%.2f", ratio)
}
