// Conformance tries a CNI plugin against the specification, point by point, from
// outside: each point in namespaces of its own, with the binary and a configuration.
//
//	conformance --plugin PATH --conf FILE [options]
//	conformance table [--out FILE] RESULTS.json…
//
// It exits with 0 when no point failed, with 1 when one did, and with 2 when nothing
// could be tried. As root it makes its namespaces directly, else in a user namespace.
// Package suite has the points; to add one is to add an entry to its table.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/ambi-cni/ambi/e2e/conformance/suite"
)

func main() {
	suite.Main()
	args := os.Args[1:]
	run := try
	if len(args) > 0 && args[0] == "table" {
		run, args = table, args[1:]
	}
	status, err := run(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	os.Exit(status)
}

// The exit statuses.
const (
	allPassed = iota
	someFailed
	notTried
)

const usage = `Usage: conformance --plugin PATH --conf FILE [options]
       conformance table [--out FILE] RESULTS.json...

FILE has the configuration of one plugin, or a conflist in which one entry is of the
plugin's type; the entries before it are run by their binaries, as a runtime would.

`

func try(args []string) (status int, err error) {
	var o suite.Options
	var path, only, needs, title string
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	f.StringVar(&o.Plugin, "plugin", "", "the binary under test")
	f.StringVar(&o.Conf, "conf", "", "file with its configuration, or a conflist")
	f.StringVar(&path, "path", os.Getenv("CNI_PATH"), "folders of the other plugins, like CNI_PATH (default $CNI_PATH, else the plugin's own)")
	f.BoolVar(&o.Rootless, "rootless", false, "run the plugin as an unprivileged user, for namespaces of that user")
	f.StringVar(&only, "only", "", "letters, numbers and ranges of points, such as C,D or 31-40,55")
	f.StringVar(&o.DelegateKey, "delegate-key", "", "key that has the configuration of its delegates, an array (default ipam, an object, if it is there)")
	f.StringVar(&o.ListKey, "list-key", "", "key that has the path of a conflist to delegate to")
	f.StringVar(&o.DelegateTimeout, "delegate-timeout", "", `member of the configuration that bounds a delegate's run, such as '"timeout":"1s"'`)
	f.StringVar(&needs, "needs", "", "programs and files without which its ADD cannot work, with commas between")
	f.IntVar(&o.Attachments, "attachments", 50, "number of ADDs side by side")
	f.IntVar(&o.Parallel, "j", 0, "points side by side (default four for each processor)")
	f.StringVar(&title, "title", "", "name of the results (default the plugin's)")
	asJSON := f.Bool("json", false, "print the results as JSON")
	if err := f.Parse(args); err != nil || o.Plugin == "" || o.Conf == "" || f.NArg() > 0 {
		if err == nil {
			f.Usage()
		}
		return notTried, nil
	}
	o.Only, o.Needs = fields(only, ","), fields(needs, ",")
	o.Path = fields(path, string(os.PathListSeparator))
	if len(o.Path) == 0 {
		o.Path = []string{filepath.Dir(o.Plugin)}
	}
	if title == "" {
		title = filepath.Base(o.Plugin)
	}
	done := 0
	o.Progress = func(r suite.Result) {
		done++
		fmt.Fprintf(os.Stderr, "%3d done  %s%-3d %-14s %5.1f s  %s\n", done, r.Letter, r.Number, r.Status, r.Seconds, r.Sentence)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	results, err := suite.Run(ctx, o)
	if err != nil {
		return notTried, err
	}
	report := suite.Report{Title: title, Results: results}
	if err := write(os.Stdout, report, *asJSON); err != nil {
		return notTried, err
	}
	if report.Count(suite.Failed) > 0 {
		return someFailed, nil
	}
	return allPassed, nil
}

func fields(text, separator string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return string(r) == separator })
}

func write(w io.Writer, report suite.Report, asJSON bool) error {
	if !asJSON {
		return report.Text(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(report)
}

// table joins reports into one page.
func table(args []string) (status int, err error) {
	f := flag.NewFlagSet("conformance table", flag.ContinueOnError)
	out := f.String("out", "", "file to write the tables into, between its marks (default standard output)")
	if err := f.Parse(args); err != nil || f.NArg() == 0 {
		return notTried, nil
	}
	var reports []suite.Report
	for _, file := range f.Args() {
		raw, err := os.ReadFile(file)
		if err != nil {
			return notTried, err
		}
		var r suite.Report
		if err := json.Unmarshal(raw, &r); err != nil {
			return notTried, fmt.Errorf("%s: %w", file, err)
		}
		reports = append(reports, r)
	}
	if *out == "" {
		return allPassed, suite.Tables(os.Stdout, reports)
	}
	return allPassed, suite.Update(*out, reports)
}
