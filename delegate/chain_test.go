package delegate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// old is a plugin that stops at 1.0.0, as Debian 12's do.
var old = []string{"0.3.1", "0.4.0", "1.0.0"}

func doing(verb, what string) script { return script{Do: map[string]string{verb: what}} }

func TestAddInOrderAndDelInReverse(t *testing.T) {
	s := newStage(t, script{}, script{}, script{})
	result := add(t, s.Chain)
	require.Equal(t, "10.1.2.3/24", result.IPs[0].Address.String())
	require.NoError(t, s.Del(context.Background(), result))
	require.Equal(t, "a ADD, b ADD, c ADD, c DEL, b DEL, a DEL", s.verbs())
	for _, c := range s.calls() {
		hasPrev := value([]byte(c.Stdin), "prevResult") != nil
		require.Equal(t, c.Verb == "DEL" || c.Plugin != "a", hasPrev, c.Plugin+c.Verb)
	}
}

func TestEnvironment(t *testing.T) {
	s := newStage(t, script{})
	t.Setenv("CNI_COMMAND", "GC")
	t.Setenv("CNI_CONTAINERID", "another")
	t.Setenv("CNI_ARGS", "A=B")
	s.Attachment.CNIArgs = "IgnoreUnknown=1;K8S_POD_NAME=x"
	s.Attachment.Path = []string{"/nowhere", s.dir}
	add(t, s.Chain)
	env := s.calls()[0].Env
	for name, want := range map[string]string{
		"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": s.Attachment.NetnsPath,
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=x", "CNI_PATH": "/nowhere:" + s.dir, "HOME": os.Getenv("HOME"),
	} {
		require.Equal(t, want, env[name], name)
	}
}

// TestTraceContext: the runtime's trace goes on to delegates, and nothing that only
// has the name of one.
func TestTraceContext(t *testing.T) {
	const parent, state, baggage = "TRACEPARENT", "TRACESTATE", "BAGGAGE"
	const id = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, c := range map[string]struct{ set, want map[string]string }{
		"a trace": {
			map[string]string{parent: id, state: "vendor=a:b,other=c", baggage: "pod=web%20one,node=n1"},
			map[string]string{parent: id, state: "vendor=a:b,other=c", baggage: "pod=web%20one,node=n1"},
		},
		"no trace":       {map[string]string{parent: "00-1-2-3", state: "a=b", baggage: "a=b"}, map[string]string{baggage: "a=b"}},
		"in capitals":    {map[string]string{parent: strings.ToUpper(id)}, nil},
		"a newline":      {map[string]string{parent: id + "\n", state: "a=b"}, nil},
		"state alone":    {map[string]string{state: "a=b"}, nil},
		"just short":     {map[string]string{parent: id, state: strings.Repeat("s", 512), baggage: strings.Repeat("b", 8192)}, map[string]string{parent: id, state: strings.Repeat("s", 512), baggage: strings.Repeat("b", 8192)}},
		"long":           {map[string]string{parent: id, state: strings.Repeat("s", 513), baggage: strings.Repeat("b", 8193)}, map[string]string{parent: id}},
		"control bytes":  {map[string]string{parent: id, state: "a=\x1b[2J", baggage: "a=b\nCNI_COMMAND=DEL"}, map[string]string{parent: id}},
		"none was given": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, script{})
			for _, variable := range []string{parent, state, baggage} {
				t.Setenv(variable, "") // for the clean-up
				os.Unsetenv(variable)
			}
			for variable, value := range c.set {
				t.Setenv(variable, value)
			}
			result := add(t, s.Chain)
			require.NoError(t, s.Check(context.Background(), result))
			require.NoError(t, s.Del(context.Background(), result))
			require.Equal(t, "a ADD, a CHECK, a DEL", s.verbs())
			for _, call := range s.calls() {
				got := map[string]string{}
				for _, variable := range []string{parent, state, baggage} {
					if value, ok := call.Env[variable]; ok {
						got[variable] = value
					}
				}
				require.Equal(t, len(c.want), len(got), "%s: %v", call.Verb, got)
				for variable, value := range c.want {
					require.Equal(t, value, got[variable], call.Verb+" "+variable)
				}
			}
		})
	}
}

func TestFindNamesAllThatIsMissingBeforeAnythingRuns(t *testing.T) {
	s := newStage(t, script{})
	s.add(`{"type":"missing1"}`)
	s.add(`{"type":"missing2"}`)
	_, err := s.Add(context.Background(), nil)
	e := requireCode(t, err, conf.ErrPluginNotAvailable)
	for _, want := range []string{"missing1", "missing2", s.dir, "containernetworking-plugins", "CNI_PATH", "delegates"} {
		require.Contains(t, e.Msg, want)
	}
	require.Empty(t, s.calls())
}

func TestFirstFolderOfPathWins(t *testing.T) {
	s := newStage(t, script{})
	second := t.TempDir()
	link(t, filepath.Join(second, "a"))
	s.Attachment.Path = []string{t.TempDir(), s.dir, second}
	add(t, s.Chain)
	require.Equal(t, filepath.Join(s.dir, "a"), s.calls()[0].Path)
}

func TestNothingExecutesFromTheCurrentFolder(t *testing.T) {
	s := newStage(t, script{})
	t.Chdir(s.dir)
	require.NoError(t, os.Mkdir("bin", 0o700))
	link(t, filepath.Join(s.dir, "bin", "a"))
	for _, entry := range []string{"", ".", "bin", "./bin", "bin/.."} {
		s.Attachment.Path = []string{entry}
		requireCode(t, s.Find(), conf.ErrPluginNotAvailable)
	}
	for _, attack := range []string{"../" + filepath.Base(s.dir) + "/a", "bin/a", "/bin/sh", "", ".", ".."} {
		s.Attachment.Path = []string{s.dir}
		s.Delegates[0].Type = attack
		_, err := s.Add(context.Background(), nil)
		requireCode(t, err, conf.ErrPluginNotAvailable)
	}
	require.Empty(t, s.calls())
}

func TestFailedAddIsUndoneInReverse(t *testing.T) {
	s := newStage(t, script{}, doing("ADD", "fail"), script{})
	_, err := s.Add(context.Background(), nil)
	e := requireCode(t, err, 117)
	require.Equal(t, "b: told to fail", e.Msg)
	require.Empty(t, e.Details)
	require.Equal(t, "a ADD, b ADD, b DEL, a DEL", s.verbs())
	for _, c := range s.calls()[2:] {
		require.Contains(t, c.Stdin, `"address":"10.1.2.3/24"`, "the result so far is the prevResult of the undo")
	}
}

func TestFailedUndoIsSaid(t *testing.T) {
	s := newStage(t, doing("DEL", "fail"), doing("ADD", "fail"))
	_, err := s.Add(context.Background(), nil)
	e := requireCode(t, err, 117)
	require.Equal(t, "b: told to fail", e.Msg)
	require.Equal(t, "not undone: a: told to fail", e.Details)
}

func TestRecordingFailureIsUndone(t *testing.T) {
	s := newStage(t, script{}, script{})
	s.AfterEach = func(i int, result *types100.Result) error {
		require.NotEmpty(t, result.IPs)
		return map[int]error{1: io.ErrShortWrite}[i]
	}
	_, err := s.Add(context.Background(), nil)
	requireCode(t, err, types.ErrIOFailure)
	require.Equal(t, "a ADD, b ADD, b DEL, a DEL", s.verbs())
}

func TestBadEndings(t *testing.T) {
	for _, test := range []struct {
		script
		code uint
		msg  string
	}{
		{doing("ADD", "fail without code"), conf.ErrNetwork, "told to fail"},
		{doing("ADD", "fail silently"), conf.ErrNetwork, "exit status 3"},
		{doing("ADD", "fail on stderr"), conf.ErrNetwork, "only here"},
		{doing("ADD", "fail with garbage"), conf.ErrNetwork, "oops"},
		{doing("ADD", "be killed"), conf.ErrNetwork, "signal: killed"},
		{doing("ADD", "print"), 6, "printed no result"},
		{doing("ADD", "flood"), 6, "printed more than"},
		{script{Result: "null"}, 6, "null"},
		{script{Result: "garbage"}, 6, "garbage"},
		{script{Result: `{"cniVersion":"1.1.0","ips":[{"addr`}, 6, "unexpected end"},
	} {
		t.Run(test.msg, func(t *testing.T) {
			s := newStage(t, script{}, test.script)
			_, err := s.Add(context.Background(), nil)
			e := requireCode(t, err, test.code)
			require.Contains(t, e.Msg, "b: ")
			require.Contains(t, e.Msg, test.msg)
			require.Equal(t, "a ADD, b ADD, b DEL, a DEL", s.verbs())
		})
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	s := newParallelStage(t, doing("ADD", "hang with a child"))
	s.Timeout = 15 * time.Second // long for the played plugin to start on a busy machine
	_, err := s.Add(context.Background(), nil)
	e := requireCode(t, err, types.ErrTryAgainLater)
	require.Contains(t, e.Msg, "a: ")
	require.Contains(t, e.Msg, "within 15s")
	require.Equal(t, "a ADD, a DEL", s.verbs())
	requireGone(t, s.childPID())
}

func TestTimeoutOfTheCallerStillUndoes(t *testing.T) {
	s := newStage(t, script{}, doing("ADD", "hang"))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for !strings.Contains(s.verbs(), "b ADD") {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	_, err := s.Add(ctx, nil)
	requireCode(t, err, types.ErrTryAgainLater)
	require.Equal(t, "a ADD, b ADD, b DEL, a DEL", s.verbs())
}

func TestDelegateDoesNotOutliveUs(t *testing.T) {
	s := newStage(t, doing("ADD", "hang with a child"))
	cmd, _ := startAdd(t, s.Chain)
	child := func() bool { _, err := os.Stat(filepath.Join(s.dir, "child")); return err == nil }
	require.Eventually(t, child, patience, 5*time.Millisecond)
	pid := s.childPID()
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	delegate := parentOf(t, pid)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	requireGone(t, delegate)
}

func parentOf(t *testing.T, pid int) (parent int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(stat), ") ")
	_, err = fmt.Sscanf(rest[2:], "%d", &parent)
	require.NoError(t, err)
	return parent
}

// requireGone waits until a process has ended; it may be a zombie that nobody
// reaps.
func requireGone(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, patience, 5*time.Millisecond)
}

func TestChildThatKeepsTheStreamsDoesNotHoldAddUp(t *testing.T) {
	s := newStage(t, doing("ADD", "leave a child"))
	var stderr strings.Builder
	s.Stderr = &stderr
	add(t, s.Chain)
	pid := s.childPID()
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	require.NoError(t, syscall.Kill(pid, 0), "it runs still")
	require.Equal(t, "child left\n", stderr.String())
}

func TestStderrIsForwarded(t *testing.T) {
	s := newStage(t, doing("ADD", "fail"))
	var stderr strings.Builder
	s.Stderr = &stderr
	_, err := s.Add(context.Background(), nil)
	requireCode(t, err, 117)
	require.Equal(t, "the reason in full\n", stderr.String())
}

func TestLargeInputAndOutput(t *testing.T) {
	result := fmt.Sprintf(`{"cniVersion":"1.1.0","x":%q}`, strings.Repeat("x", 1<<20))
	s := newStage(t, script{Result: result})
	s.add(fmt.Sprintf(`{"type":"a","large":%q}`, strings.Repeat("y", 1<<20)))
	add(t, s.Chain)
	require.Greater(t, len(s.calls()[1].Stdin), 1<<20)
}

func TestBusyBinaryIsRetried(t *testing.T) {
	s := newStage(t)
	self, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	raw, err := json.Marshal(script{})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "a.script"), raw, 0o600))
	f, err := os.OpenFile(filepath.Join(s.dir, "a"), os.O_CREATE|os.O_WRONLY, 0o700)
	require.NoError(t, err)
	_, err = f.Write(self)
	require.NoError(t, err)
	time.AfterFunc(200*time.Millisecond, func() { f.Close() })
	s.add(`{"type":"a"}`)
	add(t, s.Chain)
}

func TestInterfaceThatIsThereAlreadyIsLeftAlone(t *testing.T) {
	s := newStage(t, script{})
	stand, err := newStandIn("eth0", nil)
	require.NoError(t, err)
	t.Cleanup(stand.Close)
	s.Attachment.NetnsPath = stand.path
	_, err = s.Add(context.Background(), nil)
	e := requireCode(t, err, types.ErrInvalidEnvironmentVariables)
	require.Contains(t, e.Msg, "CNI_IFNAME")
	require.Empty(t, s.calls())
}

func TestNamespaceThatIsNone(t *testing.T) {
	s := newStage(t, script{})
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{file, "/nowhere"} {
		s.Attachment.NetnsPath = path
		_, err := s.Add(context.Background(), nil)
		e := requireCode(t, err, types.ErrInvalidEnvironmentVariables)
		require.Contains(t, e.Msg, "CNI_NETNS")
	}
	require.Empty(t, s.calls())
}

func TestOlderDelegateIsAskedInItsNewestVersion(t *testing.T) {
	s := newStage(t, script{}, script{Versions: []string{"0.3.1", "0.4.0"}})
	result := add(t, s.Chain)
	require.Equal(t, "1.1.0", result.CNIVersion)
	require.Equal(t, "10.1.2.3/24", result.IPs[0].Address.String())
	require.Equal(t, "a ADD, b ADD, b VERSION, b ADD", s.verbs())
	last := s.calls()[3].Stdin
	require.Equal(t, `"0.4.0"`, string(value([]byte(last), "cniVersion")))
	require.Contains(t, last, `"version":"4"`, "prevResult in the form of 0.4.0")
}

func TestVersionsAreRemembered(t *testing.T) {
	s := newStage(t, script{Versions: old})
	s.CacheDir = filepath.Join(t.TempDir(), "made", "when", "needed")
	add(t, s.Chain)
	require.Equal(t, "a ADD, a VERSION, a ADD", s.verbs())
	s.forget()
	add(t, s.Chain)
	require.NoError(t, s.Check(context.Background(), &types100.Result{}))
	require.NoError(t, s.Del(context.Background(), nil))
	require.Equal(t, "a ADD, a CHECK, a DEL", s.verbs())

	files, err := filepath.Glob(filepath.Join(s.CacheDir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 1, "no temporary file is left")
	for _, garbage := range []string{"", "null", "garbage", `{"path":"` + s.dir + `/a","versi`, `{"versions":["9.9.9"]}`} {
		require.NoError(t, os.WriteFile(files[0], []byte(garbage), 0o600))
		s.forget()
		add(t, s.Chain)
		require.Equal(t, "a ADD, a VERSION, a ADD", s.verbs(), garbage)
	}
}

func TestBinarySwappedForAnotherVersion(t *testing.T) {
	s := newStage(t, script{Versions: []string{"0.4.0"}})
	s.CacheDir = t.TempDir()
	result := add(t, s.Chain)
	// The played binaries are one file, so the memory is wrong and not only stale.
	s.install("a", script{Versions: []string{"1.0.0"}})
	s.forget()
	require.NoError(t, s.Del(context.Background(), result))
	require.Equal(t, "a DEL, a VERSION, a DEL", s.verbs())
}

// A package manager may put another binary of the same size and time in the place.
func TestBinaryOfTheSameLooksIsAskedAgain(t *testing.T) {
	s := newStage(t)
	s.CacheDir = t.TempDir()
	path := filepath.Join(t.TempDir(), "plugin")
	then := time.Unix(1700000000, 0)
	for _, v := range []string{"1.0.0", "1.1.0"} {
		text := `#!/bin/sh
echo '{"cniVersion":"1.0.0","supportedVersions":["` + v + `"]}'
`
		require.NoError(t, os.WriteFile(path+".new", []byte(text), 0o755))
		require.NoError(t, os.Chtimes(path+".new", then, then))
		require.NoError(t, os.Rename(path+".new", path))
		require.Nil(t, s.remembered(path), v)
		asked, err := s.probe(context.Background(), path)
		require.NoError(t, err)
		require.Equal(t, []string{v}, asked)
		require.Equal(t, asked, s.remembered(path))
	}
}

func TestOnlyNewerVersions(t *testing.T) {
	s := newStage(t, script{Versions: []string{"1.0.0", "1.1.0"}})
	s.Attachment.NetConf.CNIVersion = "0.3.1"
	add(t, s.Chain)
	require.Equal(t, "a ADD, a VERSION, a ADD", s.verbs())
}

func TestNoKnownVersion(t *testing.T) {
	s := newStage(t, script{Versions: []string{"9.9.9"}})
	s.Attachment.NetConf.CNIVersion = "1.0.0"
	_, err := s.Add(context.Background(), nil)
	e := requireCode(t, err, types.ErrIncompatibleCNIVersion)
	require.Contains(t, e.Msg, "a: ")
	require.Contains(t, e.Msg, "9.9.9")
}

func TestCodeOneFromFurtherDownIsNotAskedAgain(t *testing.T) {
	s := newStage(t, script{Do: map[string]string{"ADD": "print"}, Result: ""})
	s.install("a", script{Do: map[string]string{"ADD": "fail"}})
	_, err := s.Add(context.Background(), nil)
	requireCode(t, err, 117)
	require.Equal(t, "a ADD, a DEL", s.verbs())
}

func TestDelTriesEveryDelegateButKeepsTheAddress(t *testing.T) {
	s := newStage(t, script{}, doing("DEL", "fail"), script{}, doing("DEL", "be killed"))
	err := s.Del(context.Background(), nil)
	e := requireCode(t, err, conf.ErrNetwork)
	require.Equal(t, "d DEL, c DEL, b DEL", s.verbs())
	for _, want := range []string{"d: ", "killed", "b: told to fail", "a: not called"} {
		require.Contains(t, e.Msg, want)
	}
}

func TestDelWithoutABinary(t *testing.T) {
	s := newStage(t, script{}, script{}, script{})
	require.NoError(t, os.Remove(filepath.Join(s.dir, "b")))
	err := s.Del(context.Background(), nil)
	e := requireCode(t, err, conf.ErrPluginNotAvailable)
	require.Contains(t, e.Msg, "b: no plugin")
	require.Equal(t, "c DEL, a DEL", s.verbs())
}

func TestDelWithoutAResult(t *testing.T) {
	s := newStage(t, script{})
	require.NoError(t, s.Del(context.Background(), nil))
	require.Nil(t, value([]byte(s.calls()[0].Stdin), "prevResult"))
}

func TestDelWorksInAStandIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, test := range []struct {
		name, netns string
		gone        bool
	}{
		{"empty", "", false},
		{"path missing", "/nowhere", false},
		{"ordinary file", file, false},
		{"another namespace", "/proc/self/ns/net", true},
		{"interface gone", "own", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStage(t, script{})
			if test.netns != "own" {
				s.Attachment.NetnsPath = test.netns
			}
			s.NetnsGone = test.gone
			require.NoError(t, s.Del(context.Background(), oneAddress()))
			given := s.calls()[0].Env["CNI_NETNS"]
			require.NotEmpty(t, given)
			require.NotEqual(t, s.Attachment.NetnsPath, given)
			require.NoFileExists(t, given, "it goes with DEL")
		})
	}
}

func TestDelUsesTheContainersNamespaceWhenItIsThere(t *testing.T) {
	s := newStage(t, script{})
	own, err := newStandIn("eth0", oneAddress())
	require.NoError(t, err)
	t.Cleanup(own.Close)
	another, err := newStandIn("eth0", nil)
	require.NoError(t, err)
	t.Cleanup(another.Close)
	for _, test := range []struct {
		netns  string
		known  bool
		result *types100.Result
		used   bool
	}{
		{own.path, false, oneAddress(), true},
		{s.Attachment.NetnsPath, false, nil, true},
		{another.path, true, oneAddress(), true}, // the container has changed its interface
		{another.path, false, oneAddress(), false},
		{another.path, false, nil, true},
	} {
		s.Attachment.NetnsPath, s.NetnsKnown = test.netns, test.known
		s.forget()
		require.NoError(t, s.Del(context.Background(), test.result))
		require.Equal(t, test.used, test.netns == s.calls()[0].Env["CNI_NETNS"], test)
	}
}

func oneAddress() *types100.Result {
	return &types100.Result{
		CNIVersion: "1.1.0",
		Interfaces: []*types100.Interface{{Name: "br0"}, {Name: "eth0", Sandbox: "/x", Mac: "02:de:1e:9a:7e:01"}},
		IPs:        []*types100.IPConfig{{Interface: types100.Int(1), Address: net.IPNet{IP: net.IPv4(10, 1, 2, 3).To4(), Mask: net.CIDRMask(24, 32)}}},
	}
}

func TestCheck(t *testing.T) {
	s := newStage(t, script{Versions: []string{"0.3.1"}}, script{}, doing("CHECK", "fail"), script{})
	s.CacheDir = t.TempDir()
	err := s.Check(context.Background(), oneAddress())
	e := requireCode(t, err, 117)
	require.Equal(t, "c: told to fail", e.Msg)
	require.Equal(t, "a CHECK, a VERSION, b CHECK, c CHECK", s.verbs(), "a has no CHECK in the versions it speaks")
	require.Contains(t, s.calls()[2].Stdin, "10.1.2.3/24")
	s.forget()
	s.DisableCheck = true
	require.NoError(t, s.Check(context.Background(), oneAddress()))
	require.Empty(t, s.calls())
}

func TestStatusGoesToThoseWhoKnowIt(t *testing.T) {
	s := newStage(t, script{Versions: old}, doing("STATUS", "fail"))
	s.CacheDir = t.TempDir()
	err := s.Status(context.Background())
	e := requireCode(t, err, 117)
	require.Equal(t, "b: told to fail", e.Msg)
	require.Equal(t, "a VERSION, b VERSION, b STATUS", s.verbs())
	s.forget()
	requireCode(t, s.Status(context.Background()), 117)
	require.Equal(t, "b STATUS", s.verbs())
	require.NotContains(t, s.calls()[0].Stdin, "prevResult")
	s.add(`{"type":"missing"}`)
	requireCode(t, s.Status(context.Background()), conf.ErrPluginNotAvailable)
}

func TestGC(t *testing.T) {
	s := newStage(t, script{Versions: old}, doing("GC", "fail"), doing("GC", "fail silently"), script{})
	valid := []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}
	err := s.GC(context.Background(), valid, nil)
	e := requireCode(t, err, 117)
	require.Contains(t, e.Msg, "b: ")
	require.Contains(t, e.Msg, "c: ")
	require.Equal(t, "a VERSION, b VERSION, b GC, c VERSION, c GC, d VERSION, d GC", s.verbs())
	for _, key := range []string{gcKey, oldGCKey} {
		require.JSONEq(t, `[{"containerID":"c1","ifname":"eth0"}]`, string(value([]byte(s.calls()[2].Stdin), key)))
	}
	s.forget()
	s.DisableGC = true
	require.NoError(t, s.GC(context.Background(), nil, nil))
	require.Empty(t, s.calls())
}

func TestNoDelegates(t *testing.T) {
	s := newStage(t)
	prev := oneAddress()
	result, err := s.Add(context.Background(), prev)
	require.NoError(t, err)
	require.Same(t, prev, result)
	require.NoError(t, s.Del(context.Background(), prev))
}
