package inject

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tracer waits for whatever child there is, so it runs in a process of its own:
// this program again.
const insideVariable = "AMBI_INJECT_INSIDE"

func TestMain(m *testing.M) {
	if text := os.Getenv(insideVariable); text != "" {
		os.Exit(inside(text))
	}
	os.Exit(m.Run())
}

func inside(text string) int {
	var fault *Fault
	if json.Unmarshal([]byte(text), &fault) != nil {
		return 1
	}
	os.Unsetenv(insideVariable)
	report, err := Run(Program{Cmd: exec.Command("sh", "-c", os.Args[1])}, fault)
	if err != nil {
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(report)
	return 0
}

// run runs a line of shell with a fault.
func run(t *testing.T, fault *Fault, line string) *Report {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the tracer knows amd64 only")
	}
	text, err := json.Marshal(fault)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe", line)
	cmd.Env = append(os.Environ(), insideVariable+"="+string(text))
	out, err := cmd.Output()
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(out, &r), "%s", out)
	return &r
}

// TestFails makes exactly one call of one program fail, that of the number given.
func TestFails(t *testing.T) {
	dir := t.TempDir()
	line := "rmdir " + dir + "/a; mkdir " + dir + "/a " + dir + "/b " + dir + "/c 2>/dev/null"
	seen := run(t, nil, "mkdir "+dir+"/first")
	require.Nil(t, seen.Hit)
	require.Equal(t, 1, seen.Counts["mkdir"]["mkdir"])
	require.Zero(t, seen.Exit)

	r := run(t, &Fault{Role: "mkdir", Call: "mkdir", N: 2, Errno: "ENOSPC"}, line)
	require.Equal(t, "mkdir("+dir+"/b)", r.Hit.Call)
	require.Equal(t, 1, r.Exit)
	require.DirExists(t, dir+"/a")
	require.NoDirExists(t, dir+"/b", "the call did not happen")
	require.DirExists(t, dir+"/c", "only that one fails")

	r = run(t, &Fault{Role: "mkdir", Call: "mkdir", N: 9, Errno: "EIO"}, line)
	require.Nil(t, r.Hit, "the ninth never comes")

	about := &Fault{Role: "mkdir", Call: "mkdir", About: "/c", N: 1, Errno: "EIO"}
	require.Equal(t, "mkdir mkdir(…/c) #1 EIO", about.String())
	require.Equal(t, "mkdir("+dir+"/c)", run(t, about, line).Hit.Call)
	about.N = 2
	require.Nil(t, run(t, about, line).Hit, "only one is about that")
}

// TestKills kills before the call, and only the process that makes it.
func TestKills(t *testing.T) {
	dir := t.TempDir()
	line := "touch " + dir + "/a; mkdir " + dir + "/b; [ $? = 137 ] && touch " + dir + "/c"
	all := run(t, nil, "mkdir "+dir+"/first")
	r := run(t, &Fault{Role: "mkdir", Call: "mkdir", N: 1, Signal: "SIGKILL"}, line)
	require.Equal(t, "mkdir("+dir+"/b)", r.Hit.Call)
	require.NoDirExists(t, filepath.Join(dir, "b"))
	require.FileExists(t, dir+"/a")
	require.FileExists(t, dir+"/c")
	require.Greater(t, all.Counts["mkdir"][Step], 3)

	r = run(t, &Fault{Role: "sleep", Call: Step, N: 1, Signal: "SIGTERM"}, "sleep 60")
	require.NotNil(t, r.Hit)
	require.Equal(t, 128+15, r.Exit)
}

// TestLeavesAlone: what is left behind by the program runs on, untraced.
func TestLeavesAlone(t *testing.T) {
	file := t.TempDir() + "/pid"
	r := run(t, nil, "sleep 60 >/dev/null & echo $! >"+file)
	require.Zero(t, r.Exit)
	pid, err := os.ReadFile(file)
	require.NoError(t, err)
	status, err := os.ReadFile("/proc/" + string(pid[:len(pid)-1]) + "/status")
	require.NoError(t, err)
	require.Contains(t, string(status), "TracerPid:\t0\n")
	require.NoError(t, exec.Command("kill", string(pid[:len(pid)-1])).Run())
}
