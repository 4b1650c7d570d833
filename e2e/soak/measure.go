package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// outcome is what a run showed.
type outcome struct {
	Mode     string         `json:"mode"`
	Calls    map[string]int `json:"calls"`  // that ended by themselves, by verb
	Failed   map[string]int `json:"failed"` // of these
	Errors   map[string]int `json:"errors"` // by verb and code
	Killed   map[string]int `json:"killed"` // verbs, daemons, containers
	Timings  []timing       `json:"timings"`
	Samples  []sample       `json:"samples"`
	Problems []string       `json:"problems"`
}

// timing is one verb. Times in seconds, since the beginning of the run.
type timing struct {
	Verb string  `json:"verb"`
	OK   bool    `json:"ok"`
	At   float64 `json:"at"`
	Took float64 `json:"took"`
}

// sample is the machine at one moment.
type sample struct {
	At          float64 `json:"at"`
	Verbs       float64 `json:"verbs"` // bytes resident at most, of the verbs at work, their median; 0 without any
	Supervisors int     `json:"supervisors"`
	Resident    float64 `json:"resident"`    // bytes, of the veteran's supervisor
	Descriptors int     `json:"descriptors"` // of the veteran's supervisor
	Median      float64 `json:"median"`      // bytes resident, of all supervisors
	Open        int     `json:"open"`        // descriptors of all processes but the test's
	Files       int     `json:"files"`       // in the state folders
}

// watch takes a sample every second, or ten times in a short run, and has the veteran
// checked: whatever happens around it, it has to work.
func (w *world) watch(stop <-chan struct{}) {
	pace := min(time.Second, w.Time/10)
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		w.sample()
		if n%10 == 0 {
			w.checkVeteran()
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// checkVeteran has CHECK say that the veteran works. Its slirp4netns may have just
// been killed.
func (w *world) checkVeteran() {
	var msg string
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		r, err := w.call(w.veteran, "CHECK", 0, "", "")
		if err != nil || r.Exit == 0 {
			return
		}
		msg, _ = r.Error()
	}
	w.problem("the veteran does not work any more: %s", msg)
}

func (w *world) sample() {
	s := sample{At: time.Since(w.began).Seconds()}
	var resident, verbs []float64
	own := os.Getpid()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == own {
			continue
		}
		fds, _ := os.ReadDir(dir + "/fd")
		s.Open += len(fds)
		d, is := daemonOf(pid)
		if !is && program(pid) == "ambi" {
			verbs = append(verbs, highWater(dir))
		}
		if !d.supervisor {
			continue
		}
		s.Supervisors++
		bytes := residentOf(dir)
		resident = append(resident, bytes)
		if w.veterans(d) {
			s.Resident, s.Descriptors = bytes, len(fds)
		}
	}
	s.Median, s.Verbs = median(resident), median(verbs)
	for _, dir := range []string{"/run/ambi", "/run/soak", "/run/user"} {
		_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				s.Files++
			}
			return nil
		})
	}
	w.mu.Lock()
	w.outcome.Samples = append(w.outcome.Samples, s)
	w.mu.Unlock()
}

func residentOf(dir string) float64 {
	text, _ := os.ReadFile(dir + "/statm")
	var size, pages float64
	_, _ = fmt.Sscan(string(text), &size, &pages)
	return pages * float64(os.Getpagesize())
}

// highWater is the most memory that a process has had. The figure of wait4(2) would
// not do: it knows the process from before it became another program, too.
func highWater(dir string) float64 {
	text, _ := os.ReadFile(dir + "/status")
	for line := range strings.Lines(string(text)) {
		var kB float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kB); n == 1 {
			return kB * 1024
		}
	}
	return 0
}

// daemon is a process that an attachment has.
type daemon struct {
	pid         int
	commandLine string
	supervisor  bool
}

func daemonOf(pid int) (daemon, bool) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	d := daemon{pid: pid, commandLine: strings.ReplaceAll(string(text), "\x00", " ")}
	name := program(pid)
	d.supervisor = name == "ambi" && strings.Contains(d.commandLine, " supervisor ")
	keeper := name == "ambi" && strings.Contains(d.commandLine, " keeper ")
	return d, d.supervisor || keeper || name == "slirp4netns"
}

func daemons() (all []daemon) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if d, is := daemonOf(pid); is {
			all = append(all, d)
		}
	}
	return all
}

func program(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return filepath.Base(exe)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// verbs in the order of the tables and the picture.
var verbs = []string{"ADD", "CHECK", "DEL", "GC", "STATUS"}

// table is the run in figures, Markdown. The first and the last quarter are
// compared: what grows with time shows there.
func (o *outcome) table() string {
	var b strings.Builder
	total := 0
	for _, n := range o.Calls {
		total += n
	}
	fmt.Fprintf(&b, "\nAs %s: %d calls, ", o.Mode, total)
	var killed []string
	for _, what := range sorted(o.Killed) {
		killed = append(killed, fmt.Sprintf("%d %s", o.Killed[what], what))
	}
	fmt.Fprintf(&b, "killed meanwhile: %s. Problems: %d.\n\n", strings.Join(killed, ", "), len(o.Problems))
	b.WriteString("| verb | calls | refused or failed | median ms, first quarter | last quarter |\n|---|---:|---:|---:|---:|\n")
	end := o.lasted()
	for _, verb := range verbs {
		part := func(from, to float64) float64 {
			var values []float64
			for _, t := range o.Timings {
				if t.Verb == verb && t.OK && t.At >= from*end && t.At <= to*end {
					values = append(values, 1000*t.Took)
				}
			}
			return median(values)
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %.1f | %.1f |\n", verb, o.Calls[verb], o.Failed[verb], part(0, 0.25), part(0.75, 1))
	}
	var early, late []float64
	for _, s := range o.Samples {
		switch {
		case s.Verbs > 0 && s.At <= end/4:
			early = append(early, s.Verbs)
		case s.Verbs > 0 && s.At >= 3*end/4:
			late = append(late, s.Verbs)
		}
	}
	fmt.Fprintf(&b, "\nMemory of a verb at work: %.1f MB in the first quarter, %.1f MB in the last.\n", median(early)/1e6, median(late)/1e6)
	if n := len(o.Samples); n > 0 && o.Mode != "root" {
		first, last := o.Samples[min(n-1, n/20)], o.Samples[n-1]
		fmt.Fprintf(&b, "\nThe supervisor that lived through all of it: %.1f MB resident and %d descriptors at the beginning, %.1f MB and %d at the end.\n",
			first.Resident/1e6, first.Descriptors, last.Resident/1e6, last.Descriptors)
	}
	return b.String()
}
