package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// publication is a report in the forms it is written in.
type publication struct {
	name   string // of the files
	title  string
	intro  []string
	tables []*table
	outro  []string // lists, in Markdown
	panels []panel
	legend string // of the picture
	data   any
}

// publish prints the tables and writes JSON, Markdown and a picture into dir.
func (p *publication) publish(dir string) error {
	fmt.Printf("%s\n\n", strings.Join(p.intro, "\n"))
	for _, t := range p.tables {
		fmt.Printf("%s\n", t.text())
	}
	fmt.Printf("%s\n", strings.Join(p.outro, "\n"))
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(p.data, "", " ")
	if err != nil {
		return err
	}
	for end, content := range map[string]string{
		".json": string(data) + "\n", ".md": p.markdown(), ".svg": picture(p.title, p.intro[0], p.legend, p.panels),
	} {
		if err := os.WriteFile(filepath.Join(dir, p.name+end), []byte(content), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("written: %s\n", filepath.Join(dir, p.name+".{json,md,svg}"))
	return nil
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
