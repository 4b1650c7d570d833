package suite

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
)

// Report is the results of one plugin in one set-up.
type Report struct {
	Title   string   `json:"title"`
	Results []Result `json:"results"`
}

// Count is the number of results of a status.
func (r Report) Count(s Status) int {
	n := 0
	for _, result := range r.Results {
		if result.Status == s {
			n++
		}
	}
	return n
}

// Summary is a line with the numbers.
func (r Report) Summary() string {
	return fmt.Sprintf("%s: %d points, %d passed, %d failed, %d not applicable",
		r.Title, len(r.Results), r.Count(Passed), r.Count(Failed), r.Count(NotApplicable))
}

var letters = map[string]string{
	"A": "Invocation and environment", "B": "Configuration on standard input", "C": "ADD", "D": "DEL",
	"E": "CHECK", "F": "GC", "G": "STATUS, VERSION and delegation",
}

// Text writes the report for people.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	letter := ""
	for _, p := range r.Results {
		if p.Letter != letter {
			letter = p.Letter
			fmt.Fprintf(&b, "\n%s. %s\n", letter, letters[letter])
		}
		fmt.Fprintf(&b, "%4d  %-14s  %s (%s)\n", p.Number, p.Status, p.Sentence, p.Basis)
		if p.Why != "" {
			fmt.Fprintf(&b, "%22s%s\n", "", p.Why)
		}
		for _, seen := range p.Seen {
			fmt.Fprintf(&b, "%22sseen: %s\n", "", seen)
		}
	}
	fmt.Fprintf(&b, "\n%s\n", r.Summary())
	_, err := io.WriteString(w, b.String())
	return err
}

// marks are before and after what a program has written into a page.
const (
	beginMark = "<!-- conformance: begin -->\n"
	endMark   = "<!-- conformance: end -->\n"
)

// Update writes the tables into a page, between its marks.
func Update(file string, reports []Report) error {
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, hasBegin := bytes.Cut(page, []byte(beginMark))
	_, after, hasEnd := bytes.Cut(rest, []byte(endMark))
	if !hasBegin || !hasEnd {
		return fmt.Errorf("%s lacks the marks %q and %q", file, beginMark, endMark)
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(beginMark)
	if err := Tables(&b, reports); err != nil {
		return err
	}
	b.WriteString(endMark)
	b.Write(after)
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// Tables writes reports side by side, as Markdown: the numbers, the points, and what
// was seen of those that failed or do not apply.
func Tables(w io.Writer, reports []Report) error {
	var b strings.Builder
	b.WriteString("| plugin | passed | failed | not applicable |\n|---|--:|--:|--:|\n")
	for _, r := range reports {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", r.Title, r.Count(Passed), r.Count(Failed), r.Count(NotApplicable))
	}
	writePoints(&b, reports)
	writeReasons(&b, "Failed", reports, Failed)
	writeReasons(&b, "Not applicable", reports, NotApplicable)
	_, err := io.WriteString(w, b.String())
	return err
}

func writePoints(b *strings.Builder, reports []Report) {
	marks := map[Status]string{Passed: "✔", Failed: "✘", NotApplicable: "–"}
	letter := ""
	for _, p := range points {
		if p.Letter != letter {
			letter = p.Letter
			fmt.Fprintf(b, "\n## %s. %s\n\n|  | point | from |", letter, letters[letter])
			for _, r := range reports {
				fmt.Fprintf(b, " %s |", r.Title)
			}
			b.WriteString("\n|--:|---|---|" + strings.Repeat(":-:|", len(reports)) + "\n")
		}
		fmt.Fprintf(b, "| %d | %s | %s |", p.Number, cell(p.Sentence), p.Basis)
		for _, r := range reports {
			fmt.Fprintf(b, " %s |", marks[r.of(p.Number).Status])
		}
		b.WriteString("\n")
	}
}

func (r Report) of(number int) Result {
	for _, result := range r.Results {
		if result.Number == number {
			return result
		}
	}
	return Result{}
}

func writeReasons(b *strings.Builder, title string, reports []Report, s Status) {
	fmt.Fprintf(b, "\n## %s\n\n| point | plugin | why |\n|--:|---|---|\n", title)
	for _, p := range points {
		var reasons []string // in the order of the reports
		of := map[string][]string{}
		for _, r := range reports {
			if result := r.of(p.Number); result.Status == s {
				if _, known := of[result.Why]; !known {
					reasons = append(reasons, result.Why)
				}
				of[result.Why] = append(of[result.Why], r.Title)
			}
		}
		for _, why := range reasons {
			fmt.Fprintf(b, "| %d | %s | %s |\n", p.Number, strings.Join(of[why], ", "), cell(why))
		}
	}
}

// cell is a text that does not end a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;", "*", "\\*", "_", "\\_", "$", "\\$").Replace(text)
}
