package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/fault/inject"
	"github.com/ambi-cni/ambi/e2e/lab"
)

// TestMain: machines run this program again, inside.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "inside" || os.Args[1] == "trace") {
		main()
		return
	}
	// Machines wait for the kernel most of the time. A -parallel of the command line
	// still has precedence.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// few are enough to see that everything works; "make fault" runs the full set.
const few = 16

func faults(t *testing.T, mode string) *options {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the tracer knows amd64 only")
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	_, err = os.Stat(root + "/bin/ambi")
	require.NoError(t, err, "run make build setup first")
	return &options{Mode: mode, Faults: few, Seed: 2, Checkout: root, Bin: root + "/bin", Tools: root + "/.tools/bin"}
}

// TestNothingLeft has some faults happen in every mode but the one that takes longest, of
// which TestOnceFound has some.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	for _, mode := range allModes {
		if mode == "shared-plugins" {
			continue
		}
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			outcomes, err := faults(t, mode).run()
			require.NoError(t, err)
			require.Len(t, outcomes, few)
			require.Less(t, missed(outcomes), few/2, "faults that never came")
			var out bytes.Buffer
			require.NoError(t, verdict(outcomes, &out), "%s", markdown(outcomes))
			t.Log(out.String())
		})
	}
}

// onceFound are faults of the kinds that once left something behind.
var onceFound = map[string][]*planned{
	"root": {
		// The ports were published without the bridge's name, since looking for it had
		// failed: no hairpin, and CHECK said so after an ADD that had succeeded.
		{Verb: "ADD", After: "ADD", Fault: &inject.Fault{Role: "ambi", Call: "bind", N: 14, Errno: "EPERM"}},
	},
	"built-in": {
		// The file of an address that could not be read was taken for somebody else's, and
		// DEL said nothing of it.
		{Verb: "DEL", After: "DEL", Fault: &inject.Fault{Role: "ambi", Call: "openat", N: 20, Errno: "EIO"}},
		{Verb: "DEL", After: "DEL", Fault: &inject.Fault{Role: "ambi", Call: "read", N: 25, Errno: "EIO"}},
	},
	"rootless": {
		// A supervisor that could not take its routes out of the namespace, or was killed
		// in the middle of it, looked like one that had.
		{Verb: "DEL", After: "DEL", Fault: &inject.Fault{Role: "supervisor", Call: "sendto", N: 6, Errno: "EPERM"}},
		{Verb: "GC", After: "GC", Fault: &inject.Fault{Role: "supervisor", Call: "sendto", N: 5, Signal: "SIGKILL"}},
		{Verb: "GC", After: "DEL", Fault: &inject.Fault{Role: "supervisor", Call: "recvfrom", N: 12, Errno: "EIO"}},
		// GC took a state folder that it could not look at for one that is not there.
		{Verb: "GC", After: "GC", Fault: &inject.Fault{Role: "ambi", Call: "newfstatat", N: 2, Errno: "EIO"}},
		// The record went although the socket stayed, so that GC knew no more of it.
		{Verb: "GC", After: "GC", Fault: &inject.Fault{Role: "ambi", Call: "unlinkat", N: 1, Errno: "EPERM"}},
		// The lock file stayed, and DEL did not say so.
		{Verb: "DEL", After: "DEL", Fault: &inject.Fault{Role: "ambi", Call: "unlinkat", N: 9, Errno: "EIO"}},
		// ADD waited for ever for a driver that could not say that it was ready.
		{Verb: "ADD", After: "ADD", Fault: &inject.Fault{Role: "slirp4netns", Call: "write", N: 2, Errno: "EIO"}},
	},
	"shared": {
		// DEL and ADD met a supervisor that was leaving, and failed.
		{Verb: "ADD", Beside: true, After: "ADD", Fault: &inject.Fault{Role: "supervisor", Call: inject.Step, N: 45, Signal: "SIGTERM"}},
		// A hub whose file could not be read was taken for one that had ended.
		{Verb: "DEL", Beside: true, After: "GC", Fault: &inject.Fault{Role: "ambi", Call: "openat", N: 12, Errno: "ENOMEM"}},
		// The routing rule of a port stayed in the hub, and nobody said so.
		{Verb: "GC", Beside: true, After: "DEL", Fault: &inject.Fault{Role: "supervisor", Call: "recvfrom", N: 2, Errno: "EIO"}},
		// ADD failed since its hub ended, and left the container's end to the kernel, which is in
		// no hurry: the next ADD met it.
		{Verb: "ADD", Beside: true, After: "ADD", Fault: &inject.Fault{Role: "supervisor", Call: inject.Step, N: 21, Signal: "SIGTERM"}},
		// A port whose socket could not be made to wait for nobody stayed open.
		{Verb: "ADD", Beside: true, After: "GC", Fault: &inject.Fault{Role: "supervisor", Call: "fcntl", N: 17, Errno: "EMFILE"}},
	},
	"shared-plugins": {
		// The sysctls of the container that could not be opened were taken for missing.
		{Verb: "ADD", After: "DEL", Fault: &inject.Fault{Role: "ambi (forked)", Call: "openat", N: 2, Errno: "ENOSPC"}},
		// A container that could not be entered was taken for one that is gone.
		{Verb: "DEL", Beside: true, After: "GC", Fault: &inject.Fault{Role: "ambi", Call: "clone", N: 7, Errno: "ENOMEM"}},
		// One in which nothing could be opened was taken for one that is closed to us.
		{Verb: "DEL", Beside: true, After: "DEL", Fault: &inject.Fault{Role: "ambi (forked)", Call: "bind", N: 1, Errno: "EPERM"}},
		// host-local kept it to itself that it had not let an address go, and no second DEL
		// came to it, since there was no record any more.
		{Verb: "GC", Beside: true, After: "DEL", Fault: &inject.Fault{Role: "host-local", Call: "getdents64", N: 2, Errno: "EIO"}},
	},
}

// TestOnceFound has them happen again.
func TestOnceFound(t *testing.T) {
	t.Parallel()
	for mode, all := range onceFound {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			outcomes, err := faults(t, mode).suffer(all)
			require.NoError(t, err)
			// The numbers are those of the day; a call may come earlier or later now.
			t.Logf("%d of %d faults never came", missed(outcomes), len(outcomes))
			require.NoError(t, verdict(outcomes, &bytes.Buffer{}), "%s", markdown(outcomes))
		})
	}
}

// left is among what such an ambi leaves.
var left = map[string]string{"root": "+ /run/own/own/10.1.0.", "rootless": "+ " + lab.RuntimeDir + "/ambi/own@box@eth0.json"}

// TestSeesLeaks: an ambi that does not take back what a failed ADD did is caught, in
// both modes.
func TestSeesLeaks(t *testing.T) {
	t.Parallel()
	for mode, trace := range left {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			o := faults(t, mode)
			o.Bin = t.TempDir()
			o.Settled = 5 * time.Second // it never goes
			build := exec.Command("go", "build", "-trimpath", "-tags", "ambi_norollback", "-o", o.Bin+"/ambi", ".")
			build.Dir, build.Env = o.Checkout, append(os.Environ(), "CGO_ENABLED=0")
			out, err := build.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.NoError(t, os.Chmod(o.Bin, 0o755))
			// It writes its record down before it changes anything; the second time something is
			// there. A program of others that is killed need not have ADD fail: what the
			// supervisor starts it starts again, perhaps before ADD asks for it.
			second := &inject.Fault{Role: "ambi", Call: "renameat", About: "/own@box@eth0.json", N: 2, Errno: "EIO"}
			outcomes, err := o.suffer([]*planned{{Verb: "ADD", After: "DEL", Fault: second}})
			require.NoError(t, err)
			require.Zero(t, missed(outcomes), "faults that never came")
			require.Error(t, verdict(outcomes, &bytes.Buffer{}))
			report := markdown(outcomes)
			require.Contains(t, report, "left behind by an ADD that said it failed")
			require.Contains(t, report, trace)
		})
	}
}

// TestPlan: no fault is planned twice, and every verb, every kind and every process
// has its share.
func TestPlan(t *testing.T) {
	c := counts{}
	for _, verb := range []string{"ADD", "DEL", "GC", "CHECK"} {
		c[verb] = map[string]map[string]int{
			"ambi":   {"openat": 40, "write": 20, "socket": 5, "mmap": 30, inject.Step: 150},
			"bridge": {"openat": 40, "sendto": 20, inject.Step: 150},
		}
	}
	chosen := plan(c, 300, 1)
	require.Len(t, chosen, 300)
	seen, kinds := map[string]bool{}, map[string]int{}
	for _, p := range chosen {
		require.False(t, seen[p.String()], p)
		seen[p.String()] = true
		kinds[p.Verb]++
		kinds[p.role()]++
		kinds[p.action()]++
	}
	for _, kind := range strings.Fields("ADD DEL GC CHECK ambi bridge ENOSPC EMFILE ENOMEM EPERM EIO SIGKILL SIGTERM") {
		require.Greater(t, kinds[kind], 5, kind)
	}
	require.Greater(t, kinds["ambi"], kinds["bridge"])
	require.Len(t, plan(counts{"ADD": {"ambi": {"pipe2": 2}}}, 300, 1), 30+4, "all there are, and those by time")
}
