package delegate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// The test binary plays the plugins: under another name than its own it does what
// the script of that name says, in this folder or, for tests that run side by side, in
// the plugin's own.
const scriptDir = "AMBI_TEST_SCRIPTS"

// addOnly holds a chain in JSON: the test binary runs its ADD and nothing else, so
// that a test can kill it.
const addOnly = "AMBI_TEST_ADD"

type chainOnly struct {
	Delegates  []conf.Delegate
	Attachment *conf.Attachment
	CacheDir   string
	Inherit    string // a file to lock and hand down
}

func playAdd(raw string) int {
	var only chainOnly
	if err := json.Unmarshal([]byte(raw), &only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	c := Chain{Delegates: only.Delegates, Attachment: only.Attachment, CacheDir: only.CacheDir, Stderr: io.Discard}
	var err error
	if c.Inherit, err = os.OpenFile(only.Inherit, os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		err = unix.Flock(int(c.Inherit.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if _, err := c.Add(context.Background(), nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// patience only ends a wait for what never comes.
const patience = 3 * time.Minute

// startAdd runs c.Add in a process of its own. ended waits until that process,
// its delegates and all that they started are no more: the kernel kills a delegate
// with the process, but does not wait for it, nor kill what it has started.
func startAdd(t *testing.T, c *Chain) (cmd *exec.Cmd, ended func()) {
	t.Helper()
	lock := filepath.Join(t.TempDir(), "busy")
	raw, err := json.Marshal(chainOnly{c.Delegates, c.Attachment, c.CacheDir, lock})
	require.NoError(t, err)
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), addOnly+"="+string(raw))
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // and its delegate with it
	return cmd, func() {
		t.Helper()
		f, err := os.Open(lock)
		if errors.Is(err, os.ErrNotExist) {
			return // it was killed before it ran anything
		}
		require.NoError(t, err)
		defer f.Close()
		require.Eventually(t, func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil },
			patience, time.Millisecond, "a delegate of the killed ADD, or what it started, goes on")
	}
}

// script is what a played plugin does.
type script struct {
	Versions []string          // that it speaks; empty: up to 1.1.0
	Do       map[string]string // by verb: see play
	Result   string            // what ADD prints; empty: a result with one address
}

// called is one line of the log that played plugins keep.
type called struct {
	Plugin string
	Verb   string
	Stdin  string
	Env    map[string]string
	Path   string // executed
}

func TestMain(m *testing.M) {
	dir, name := filepath.Split(os.Args[0])
	dir = cmp.Or(os.Getenv(scriptDir), dir)
	if raw, err := os.ReadFile(filepath.Join(dir, name+".script")); err == nil {
		var s script
		if err := json.Unmarshal(raw, &s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(s.play(dir, name))
	}
	if raw := os.Getenv(addOnly); raw != "" {
		os.Exit(playAdd(raw))
	}
	// The tests with real plugins wait for the kernel most of the time. A -parallel of
	// the command line still has precedence.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(unit.RunTests(m))
}

func (s script) play(dir, name string) int {
	stdin, _ := io.ReadAll(os.Stdin)
	verb := os.Getenv("CNI_COMMAND")
	s.log(dir, called{Plugin: name, Verb: verb, Stdin: string(stdin), Env: environment(), Path: os.Args[0]})
	var c struct {
		CNIVersion string          `json:"cniVersion"`
		Prev       json.RawMessage `json:"prevResult"`
	}
	_ = json.Unmarshal(stdin, &c)
	if len(s.Versions) == 0 {
		s.Versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	}
	if verb == "VERSION" && s.Do[verb] == "" {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.1.0", "supportedVersions": s.Versions})
		return 0
	}
	if !strings.Contains(strings.Join(s.Versions, " "), c.CNIVersion) {
		return s.fail(1, "incompatible CNI versions")
	}
	switch what := s.Do[verb]; what {
	case "fail":
		fmt.Fprintln(os.Stderr, "the reason in full")
		return s.fail(117, "told to fail")
	case "fail without code":
		return s.fail(0, "told to fail")
	case "fail silently":
		return 3
	case "fail on stderr":
		fmt.Fprintln(os.Stderr, "only here")
		return 3
	case "fail with garbage":
		fmt.Println("oops")
		return 3
	case "hang", "hang with a child":
		if what == "hang with a child" {
			s.child(dir)
		}
		time.Sleep(time.Hour)
	case "be killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "leave a child":
		s.child(dir)
		fmt.Fprintln(os.Stderr, "child left")
	case "print":
		fmt.Print(s.Result)
		return 0
	case "flood":
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		for range mostOutput>>20 + 1 {
			os.Stdout.Write(chunk)
		}
	}
	if verb == "ADD" {
		s.printResult(c.CNIVersion, c.Prev)
	}
	return 0
}

// child starts a process that keeps all three streams, and notes its number.
func (s script) child(dir string) {
	cmd := exec.Command("sleep", "3600")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err == nil {
		note := filepath.Join(dir, "child")
		_ = os.WriteFile(note+".new", fmt.Append(nil, cmd.Process.Pid), 0o600)
		_ = os.Rename(note+".new", note) // a test waits for it
	}
}

func (s script) printResult(v string, prev json.RawMessage) {
	switch {
	case s.Result != "":
		fmt.Print(s.Result)
	case prev != nil:
		os.Stdout.Write(prev)
	default:
		version := ""
		if v < "1.0.0" {
			version = `"version":"4",`
		}
		// A MAC address that no other test's container has: where it is says whose it is.
		fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"eth0","mac":"02:de:1e:9a:7e:01","sandbox":"/x"}],`+
			`"ips":[{%s"interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}]}`, v, version)
	}
}

func (s script) fail(code uint, msg string) int {
	_ = json.NewEncoder(os.Stdout).Encode(types.Error{Code: code, Msg: msg})
	return 1
}

func (s script) log(dir string, c called) {
	line, _ := json.Marshal(c)
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, _ = f.Write(append(line, '\n'))
		f.Close()
	}
}

func environment() map[string]string {
	env := make(map[string]string)
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	return env
}

// stage is a folder of played plugins and a chain of them.
type stage struct {
	t   *testing.T
	dir string
	*Chain
}

// newStage makes a chain of the plugins a, b, c…, as many as there are scripts,
// for a container with a namespace of its own.
func newStage(t *testing.T, scripts ...script) *stage {
	t.Helper()
	s := newParallelStage(t, scripts...)
	t.Setenv(scriptDir, s.dir)
	return s
}

// newParallelStage is newStage for a test that runs beside others.
func newParallelStage(t *testing.T, scripts ...script) *stage {
	t.Helper()
	s := &stage{t: t, dir: t.TempDir()}
	s.Chain = &Chain{
		Attachment: &conf.Attachment{
			Key:       conf.Key{Network: "net", ContainerID: "c1", IfName: "eth0"},
			NetnsPath: newNetns(t),
			Path:      []string{s.dir},
			NetConf:   &conf.NetConf{Name: "net", CNIVersion: "1.1.0", Type: "ambi", Raw: json.RawMessage(`{}`)},
		},
		Stderr: io.Discard,
	}
	for i, sc := range scripts {
		name := string(rune('a' + i))
		s.install(name, sc)
		s.add(fmt.Sprintf(`{"type":%q}`, name))
	}
	return s
}

func (s *stage) add(raw string) {
	s.t.Helper()
	d, err := conf.ParseDelegate("delegates", json.RawMessage(raw))
	require.NoError(s.t, err)
	s.Delegates = append(s.Delegates, d)
}

func (s *stage) install(name string, sc script) {
	s.t.Helper()
	raw, err := json.Marshal(sc)
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(filepath.Join(s.dir, name+".script"), raw, 0o600))
	link(s.t, filepath.Join(s.dir, name))
}

// link puts the test binary at path.
func link(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	_ = os.Remove(path)
	require.NoError(t, os.Symlink(self, path))
}

// calls is what the played plugins were called with so far.
func (s *stage) calls() []called {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(s.t, err)
	var calls []called
	for line := range bytes.Lines(raw) {
		var c called
		require.NoError(s.t, json.Unmarshal(line, &c))
		calls = append(calls, c)
	}
	return calls
}

// verbs is the calls as text: "a ADD, b ADD".
func (s *stage) verbs() string {
	s.t.Helper()
	var all []string
	for _, c := range s.calls() {
		all = append(all, c.Plugin+" "+c.Verb)
	}
	return strings.Join(all, ", ")
}

func (s *stage) forget() { os.Remove(filepath.Join(s.dir, "log")) }

// childPID is the child that a played plugin has left.
func (s *stage) childPID() int {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "child"))
	require.NoError(s.t, err)
	var pid int
	_, err = fmt.Sscan(string(raw), &pid)
	require.NoError(s.t, err)
	return pid
}

func requireCode(t *testing.T, err error, code uint) *types.Error {
	t.Helper()
	var e *types.Error
	require.Truef(t, errors.As(err, &e), "%T %v is not a *types.Error", err, err)
	require.Equal(t, code, e.Code, e.Error())
	return e
}

// newNetns is the path of a new network namespace that goes with the test.
func newNetns(t *testing.T) string {
	t.Helper()
	return openNetns(t).Path()
}

func openNetns(t *testing.T) *unit.Netns {
	t.Helper()
	n, err := unit.NewNetns()
	require.NoError(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// onHost runs the rest of the test on a thread in a network namespace of its own,
// which plays the host, and returns it for onSameHost.
func onHost(t *testing.T) *unit.Netns {
	t.Helper()
	host := openNetns(t)
	onSameHost(t, host)
	run(t, "ip", "link", "set", "lo", "up")
	return host
}

// onSameHost runs the rest of a part of a test on the host of the whole.
func onSameHost(t *testing.T, host *unit.Netns) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	require.NoError(t, host.Enter())
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoErrorf(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

func add(t *testing.T, c *Chain) *types100.Result {
	t.Helper()
	result, err := c.Add(context.Background(), nil)
	require.NoError(t, err)
	return result
}
