package cli

import (
	"crypto/rand"
	"io"
	"strings"
	"unicode"
)

// people is an output that people read. Names, paths, addresses and messages come
// from containers, delegates and other users: here, and only here, they lose what
// would move the cursor, colour, hide or turn round what a terminal shows.
type people struct {
	to io.Writer
	// ink begins what paint writes. It is made anew in each run, so that no text can
	// hold it; empty without colours.
	ink string
}

func newInk() string { return "\x1b" + rand.Text() }

// Write takes whole characters.
func (p *people) Write(b []byte) (int, error) {
	text := string(b)
	parts := []string{text}
	if p.ink != "" {
		parts = strings.Split(text, p.ink)
	}
	var clean strings.Builder
	for i, part := range parts {
		if i > 0 { // a style, which ends in m
			how, rest, _ := strings.Cut(part, "m")
			clean.WriteString(how + "m")
			part = rest
		}
		clean.WriteString(strings.Map(visible, part))
	}
	if _, err := io.WriteString(p.to, clean.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}

func visible(r rune) rune {
	if unicode.IsGraphic(r) || r == '\n' || r == '\t' {
		return r
	}
	return '?'
}

// programs is the same output for programs: JSON, which has escapes of its own, a
// conflist, a completion script.
func programs(out io.Writer) io.Writer {
	if p, ok := out.(*people); ok {
		return p.to
	}
	return out
}
