package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// bad says whether something is wrong that is not a delegate's own.
func (o *outcome) bad() bool { return o.Problem != "" && o.Known == "" }

func hitAt(o *outcome) string {
	if o.Hit == nil {
		return "never reached"
	}
	return "hit " + o.Hit.Call
}

// verdict prints what was found, and is an error when that is a problem.
func verdict(all []*outcome, w io.Writer) error {
	found := 0
	for _, mode := range allModes {
		injected, distinct, bad := 0, map[string]bool{}, 0
		for _, o := range all {
			if o.Mode != mode {
				continue
			}
			if o.Hit != nil {
				injected++
				distinct[o.planned.String()] = true
			}
			if o.bad() {
				bad++
			}
		}
		if injected > 0 || bad > 0 {
			fmt.Fprintf(w, "%s: %d faults injected, %d of them distinct; %d problems\n", mode, injected, len(distinct), bad)
		}
		found += bad
	}
	if found > 0 {
		return fmt.Errorf("%d problems", found)
	}
	return nil
}

// markdown is the report.
func markdown(all []*outcome) string {
	var b strings.Builder
	b.WriteString("# Faults\n\nWritten by `make fault` (e2e/fault). Each fault happened to one verb, at one system call or moment; then came DEL, GC, or\n" +
		"a second ADD and DEL; then the machine was compared with how it was before. See `docs/reliability.md`.\n\n```\n")
	_ = verdict(all, &b)
	b.WriteString("```\n")
	for _, mode := range allModes {
		var of []*outcome
		for _, o := range all {
			if o.Mode == mode {
				of = append(of, o)
			}
		}
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## As %s\n\nHow many of each kind really happened:\n\n", mode)
		summary(&b, of)
		fmt.Fprintf(&b, "\nWhat the verbs did: %s. Planned and never reached, because the run took another way: %d.\n", deeds(of), missed(of))
		details(&b, of)
	}
	return b.String()
}

func summary(b *strings.Builder, of []*outcome) {
	columns, rows := map[string]bool{}, map[string]map[string]int{}
	for _, o := range of {
		if o.Hit == nil {
			continue
		}
		row := o.what() + " | " + o.role()
		if rows[row] == nil {
			rows[row] = map[string]int{}
		}
		rows[row][o.action()]++
		columns[o.action()] = true
	}
	names := slices.Sorted(maps.Keys(columns))
	fmt.Fprintf(b, "| verb | process | %s |\n|---|---|%s\n", strings.Join(names, " | "), strings.Repeat("---:|", len(names)))
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(b, "| %s |", row)
		for _, name := range names {
			if n := rows[row][name]; n > 0 {
				fmt.Fprintf(b, " %d", n)
			}
			b.WriteString(" |")
		}
		b.WriteString("\n")
	}
}

func deeds(of []*outcome) string {
	did := map[string]int{}
	for _, o := range of {
		if o.Hit != nil {
			did[cmp.Or(o.Did, "hung")]++
		}
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(did)) {
		words = append(words, fmt.Sprintf("%d %s", did[name], name))
	}
	return strings.Join(words, ", ")
}

func missed(of []*outcome) (n int) {
	for _, o := range of {
		if o.Hit == nil {
			n++
		}
	}
	return n
}

func details(b *strings.Builder, of []*outcome) {
	slices.SortFunc(of, func(x, y *outcome) int {
		return cmp.Or(cmp.Compare(x.what(), y.what()), cmp.Compare(x.role(), y.role()), cmp.Compare(x.action(), y.action()), cmp.Compare(x.Moment, y.Moment), cmp.Compare(x.planned.String(), y.planned.String()))
	})
	b.WriteString("\n<details><summary>Every fault</summary>\n\n| fault | where | the verb | then | left |\n|---|---|---|---|---|\n")
	for _, o := range of {
		if o.Hit == nil && o.Problem == "" {
			continue
		}
		left := "nothing"
		if o.foreign() && strings.HasPrefix(o.Said, "kept to itself") {
			left = "nothing, after a second DEL: the delegate " + o.Said
		}
		switch {
		case o.Known != "":
			left = o.Known + ": " + o.Problem
		case o.Problem != "":
			left = "**" + o.Problem + "**"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", cell(o.planned.String()), cell(strings.TrimPrefix(hitAt(o), "hit ")), o.Did, map[string]string{"ADD": "ADD, DEL"}[o.After]+strings.TrimPrefix(o.After, "ADD"), cell(left))
	}
	b.WriteString("\n</details>\n")
}

func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", "<br>", "<", "&lt;").Replace(s)
}
