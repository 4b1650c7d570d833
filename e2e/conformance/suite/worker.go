package suite

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

// The first thread stays what /proc/self shows: nothing else runs on it, and enters
// other namespaces there.
func init() {
	if os.Getenv(jobVariable) != "" {
		runtime.LockOSThread()
	}
}

// Main is to be called first of all in a program that calls Run: the program is
// started again for each point, and as the scripted plugin. It does not return then.
func Main() {
	if name := filepath.Base(os.Args[0]); strings.HasPrefix(name, "delegate") || strings.HasPrefix(name, scripted.Name) {
		os.Exit(scripted.Main())
	}
	text := os.Getenv(jobVariable)
	if text == "" {
		return
	}
	_ = os.Unsetenv(jobVariable) // it is there
	unix.Umask(0o022)
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintln(os.Stderr, "conformance: job:", err)
		os.Exit(1)
	}
	r := work(&j)
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "conformance: result:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// work tries one point in the machine that this process is in.
func work(j *job) (r Result) {
	l := &lab{job: j}
	defer func() {
		r.Seen = l.seen
		switch p := recover().(type) {
		case nil:
			r.Status = Passed
		case verdict:
			r.Status, r.Why = p.status, p.why
		default:
			r.Status, r.Why = Failed, fmt.Sprintf("trouble of the suite, not of the plugin: %v %s", p, debug.Stack())
		}
	}()
	var err error
	l.machine, err = furnish(j)
	l.must(err)
	l.network, err = parseNetwork(j.Text, j.Type)
	l.must(err)
	points[j.Number-1].Run(l)
	return r
}
