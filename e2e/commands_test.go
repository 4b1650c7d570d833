package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"netns":     makeNetns,
	"userns":    makeUserns,
	"stopns":    stopUserns,
	"inside":    inside,
	"poll":      poll,
	"process":   process,
	"snapshot":  takeSnapshot,
	"unchanged": unchanged,
}

// patience bounds every wait for a condition. It only ends what hangs: a machine may
// be ten times slower than the usual, and busy.
const patience = 5 * time.Minute

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
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// snapshotFile holds what the command snapshot has seen.
const snapshotFile = stage + "/snapshot"

// machine is what is looked at.
var machine = snapshot.Options{Ignore: []string{stage}}

func takeSnapshot(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 0)
	ts.Check(machine.Take().Save(snapshotFile))
}

func unchanged(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 0)
	patient := machine
	if len(args) > 0 {
		patient.Settled = patience
	}
	ts.Check(patient.Unchanged(snapshotFile))
}
