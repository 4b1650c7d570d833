package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"netns":     makeNetns,
	"userns":    makeUserns,
	"stopns":    stopUserns,
	"inside":    inside,
	"poll":      poll,
	"snapshot":  takeSnapshot,
	"unchanged": unchanged,
}

// patience bounds every wait for a condition.
const patience = 10 * time.Second

func need(ts *testscript.TestScript, neg bool, args []string, least int) {
	if neg || len(args) < least {
		ts.Fatalf("bad use of a command; see doc.go")
	}
}

func makeNetns(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1)
	ts.Check(ts.Exec("ip", "netns", "add", args[0]))
	ts.Setenv(args[0], "/run/netns/"+args[0])
}

func makeUserns(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1)
	flags := args[1:]
	if len(flags) == 0 {
		flags = []string{"-Urn"}
	}
	cmd := exec.Command(stage+"/sbin/asuser", append(append([]string{"unshare"}, flags...), "sleep", "infinity")...)
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH")}
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pid := strconv.Itoa(cmd.Process.Pid)
	own, err := os.Readlink("/proc/self/ns/net")
	ts.Check(err)
	waitFor(ts, "the namespace of "+args[0], func() bool {
		// unshare has become sleep: all its namespaces are made and mapped.
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		theirs, err := os.Readlink("/proc/" + pid + "/ns/net")
		return err == nil && theirs != own && string(name) == "sleep\n"
	})
	ts.Setenv(args[0], "/proc/"+pid+"/ns/net")
	ts.Setenv(args[0]+"_PID", pid)
}

func stopUserns(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1)
	pid, err := strconv.Atoi(ts.Getenv(args[0] + "_PID"))
	ts.Check(err)
	p, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(p.Kill())
	waitFor(ts, "the end of "+args[0], func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// inside enters both kinds of namespace: the owning user namespace is joined
// where there is one.
func inside(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("bad use of inside; see doc.go")
	}
	argv := insideArgs(ts, args)
	if argv[len(argv)-1] == "&" {
		startBackground(ts, argv[:len(argv)-1])
		return
	}
	verdict(ts, neg, ts.Exec("nsenter", argv...), argv)
}

func startBackground(ts *testscript.TestScript, argv []string) {
	cmd := exec.Command("nsenter", argv...)
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH")}
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func verdict(ts *testscript.TestScript, neg bool, err error, argv []string) {
	if neg && err == nil {
		ts.Fatalf("%q succeeded", argv)
	}
	if !neg && err != nil {
		ts.Fatalf("%q: %v", argv, err)
	}
}

func poll(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("bad use of poll; see doc.go")
	}
	var err error
	ok := waitUntil(patience, func() bool {
		if args[0] == "inside" {
			err = ts.Exec("nsenter", insideArgs(ts, args[1:])...)
		} else {
			err = ts.Exec(args[0], args[1:]...)
		}
		return (err == nil) != neg
	})
	if !ok {
		ts.Fatalf("%q for %s: %v", args, patience, err)
	}
}

func insideArgs(ts *testscript.TestScript, args []string) []string {
	argv := []string{"--net=" + ts.Getenv(args[0])}
	if pid := ts.Getenv(args[0] + "_PID"); pid != "" {
		argv = append(argv, "--user=/proc/"+pid+"/ns/user")
	}
	return append(argv, args[1:]...)
}

func waitFor(ts *testscript.TestScript, what string, condition func() bool) {
	if !waitUntil(patience, condition) {
		ts.Fatalf("waited %s for %s", patience, what)
	}
}

// waitUntil asks again and again until the condition holds or the time is over.
func waitUntil(limit time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// snapshotVariable holds the name of the file with the snapshot.
const snapshotFile = stage + "/snapshot"

func takeSnapshot(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 0)
	ts.Check(os.WriteFile(snapshotFile, []byte(machineState()), 0o600))
}

func unchanged(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 0)
	before, err := os.ReadFile(snapshotFile)
	ts.Check(err)
	limit := time.Duration(0)
	if len(args) > 0 {
		seconds, err := strconv.Atoi(args[0])
		ts.Check(err)
		limit = time.Duration(seconds) * time.Second
	}
	var after string
	if waitUntil(limit, func() bool { after = machineState(); return after == string(before) }) {
		return
	}
	ts.Fatalf("the machine has changed (- before, + now):\n%s", difference(string(before), after))
}

// machineState is all that could be left behind, as text.
func machineState() string {
	var b strings.Builder
	for _, argv := range [][]string{
		{"ip", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule"}, {"ip", "-6", "rule"}, {"ip", "netns"},
		{"nft", "list", "ruleset"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"conntrack", "-L"},
		{"ss", "-Hanltu"}, {"ss", "-Hxl"}, {"tc", "qdisc"},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		fmt.Fprintf(&b, "# %s\n%s", strings.Join(argv, " "), volatile(string(out)))
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
	}
	fmt.Fprintf(&b, "# processes\n%s# mounts\n%s# files\n%s", processes(), mounts(), files())
	return b.String()
}

// moving is what changes by itself: packet counts, and the carrier of a bridge
// that has lost its last port.
var moving = regexp.MustCompile(`packets \d+ bytes \d+|<[A-Z_,-]+>|state [A-Z]+|linkdown|^\d+: |@if\d+|\(id: \d+\)`)

// volatile drops lines and columns that change by themselves.
func volatile(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		line = moving.ReplaceAllString(line, "")
		if strings.TrimSpace(line) == "" || strings.Contains(line, "fe80::") || strings.Contains(line, "ff00::") || strings.Contains(line, "multicast ff") {
			continue // the kernel's own, and late
		}
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "tcp ") || strings.HasPrefix(line, "icmp") || strings.HasPrefix(line, "unknown") {
			continue // dates of iptables-save; conntrack of TCP goes by itself
		}
		fields := strings.Fields(line)
		if fields[0] == "udp" && len(fields) > 2 && strings.Contains(line, "dport=") {
			fields = slices.Delete(fields, 2, 3) // conntrack: the seconds left
		}
		kept = append(kept, strings.Join(fields, " ")+"\n")
	}
	slices.Sort(kept)
	return strings.Join(kept, "")
}

func processes() string {
	var lines []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		args, _ := os.ReadFile(dir + "/cmdline")
		if err != nil || len(args) == 0 || strings.Contains(string(stat), ") Z ") {
			continue // gone, or waiting for its parent
		}
		lines = append(lines, strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func mounts() string {
	b, _ := os.ReadFile("/proc/self/mounts")
	return string(b)
}

// files lists what is in the folders of state. Not a leftover: what an ambi has
// learnt about the host's programs, for the next one.
func files() string {
	var lines []string
	for _, root := range []string{"/run", "/tmp", "/var/lib/cni", "/etc/cni"} {
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || path == stage || d.IsDir() || strings.HasSuffix(path, ".cache") || strings.HasPrefix(path, "/run/netns/") {
				if path == stage {
					return filepath.SkipDir
				}
				return nil
			}
			lines = append(lines, path+"\n")
			return nil
		})
	}
	return strings.Join(lines, "")
}

// difference shows the lines that are only on one side.
func difference(before, after string) string {
	var b strings.Builder
	only := func(sign, text, other string) {
		lines := slices.Collect(strings.Lines(other))
		for line := range strings.Lines(text) {
			if !slices.Contains(lines, line) {
				b.WriteString(sign + " " + line)
			}
		}
	}
	only("-", before, after)
	only("+", after, before)
	return b.String()
}
