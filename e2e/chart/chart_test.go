package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A picture is well-formed XML, with or without anything in it, and shows every name
// and figure.
func TestSVG(t *testing.T) {
	wellFormed(t, Picture{}.SVG())
	wellFormed(t, Picture{Columns: []Column{{Panels: []Panel{Bars{}, Lines{}, Lines{Lines: []Line{{Name: "none"}}}}}}}.SVG())
	svg := Picture{
		Title: "a < b & c", Notes: []string{"a note"},
		Columns: []Column{{Title: "left", Panels: []Panel{
			Bars{Title: "speed", Unit: "Gbit/s", Bars: []Bar{{Name: "ours", Value: 12.34, Accent: true, Note: "2×"}, {Name: "theirs", Fails: true}}},
		}}, {Title: "right", Panels: []Panel{
			Lines{Title: "memory", Unit: "MB", Lines: []Line{{Name: "one", Points: [][2]float64{{0, 3}, {90, 7}}}}},
		}}},
	}.SVG()
	wellFormed(t, svg)
	for _, what := range []string{"a &lt; b &amp; c", "a note", "left", "speed", "Gbit/s, more is better", "ours", "12.3  (2×)", "theirs", "fails", "right", "memory", "one", "8 MB", "1:30"} {
		require.Contains(t, svg, ">"+what+"<")
	}
}

func wellFormed(t *testing.T, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}
