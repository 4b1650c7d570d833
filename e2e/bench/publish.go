package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/e2e/chart"
)

// publication is a report in the forms it is written in.
type publication struct {
	name    string // of the files
	title   string
	intro   []string
	tables  []*table
	outro   []string // lists, in Markdown
	columns []chart.Column
	legend  string         // of the picture
	extract *chart.Picture // for the README; nil: none
	data    any
}

// show puts a panel into the column of that title.
func (p *publication) show(column string, panel chart.Panel) {
	i := slices.IndexFunc(p.columns, func(c chart.Column) bool { return c.Title == column })
	if i < 0 {
		i, p.columns = len(p.columns), append(p.columns, chart.Column{Title: column})
	}
	p.columns[i].Panels = append(p.columns[i].Panels, panel)
}

// publish prints the tables, and writes them and a picture into the folder docs, every
// single figure as JSON into the folder data. An empty name is no folder.
func (p *publication) publish(docs, data string) error {
	fmt.Printf("%s\n\n", strings.Join(p.intro, "\n"))
	for _, t := range p.tables {
		fmt.Printf("%s\n", t.text())
	}
	fmt.Printf("%s\n", strings.Join(p.outro, "\n"))
	figures, err := json.MarshalIndent(p.data, "", " ")
	if err != nil {
		return err
	}
	picture := chart.Picture{Title: p.title, Notes: []string{p.intro[0], p.legend}, Columns: p.columns}
	if p.extract != nil {
		if err := p.write(docs, "-extract.svg", p.extract.SVG()); err != nil {
			return err
		}
	}
	return errors.Join(
		p.write(docs, ".md", p.markdown()),
		p.write(docs, ".svg", picture.SVG()),
		p.write(data, ".json", string(figures)+"\n"),
	)
}

func (p *publication) write(dir, end, content string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, p.name+end)
	fmt.Printf("written: %s\n", path)
	return os.WriteFile(path, []byte(content), 0o644)
}

func (p *publication) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- written by bench; do not edit -->\n# %s\n\n%s\n\n![%s](%s.svg)\n\n", p.title, strings.Join(p.intro, "\n\n"), p.title, p.name)
	for _, t := range p.tables {
		b.WriteString(t.markdown())
	}
	fmt.Fprintf(&b, "%s\n", strings.Join(p.outro, "\n"))
	return b.String()
}
