package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/lab"
)

// scriptVariable names the script that this process is to run, inside a machine.
const scriptVariable = "AMBI_E2E_SCRIPT"

// bigVariable has scripts move and hold more than each run needs, on a machine that is quiet.
const bigVariable = "AMBI_TEST_BIG"

// oldVariable is a program of ours of before, to be upgraded from and to.
const (
	oldVariable = "AMBI_TEST_OLD"
	oldProgram  = stage + "/older"
)

// withoutAttacksVariable leaves the scripts of attacks.txt to "make attack", where both are run.
const withoutAttacksVariable = "AMBI_TEST_WITHOUT_ATTACKS"

// The user of the scripts: any uid that nobody has.
const uid = "40001"

// stage is where a machine finds its programs.
const stage = lab.Stage

// TestScripts runs every script in a machine of its own.
func TestScripts(t *testing.T) {
	if os.Getenv(scriptVariable) != "" {
		t.Skip("inside a machine")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	t.Parallel()
	scripts, err := filepath.Glob("testdata/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, scripts)
	for _, need := range []string{"../bin/ambi", "../.tools/bin/cnitool", "../.tools/bin/peer"} {
		_, err := os.Stat(need)
		require.NoError(t, err, "run make build setup first")
	}
	for _, script := range scripts {
		name := strings.TrimSuffix(filepath.Base(script), ".txtar")
		t.Run(name, func(t *testing.T) {
			if os.Getenv(withoutAttacksVariable) != "" && slices.ContainsFunc(attacks(t), func(a attack) bool { return a.script == name }) {
				t.Skip("make attack runs it")
			}
			t.Parallel()
			runInMachine(t, script)
		})
	}
}

// runInMachine runs a script.
func runInMachine(t *testing.T, script string) {
	out, err := inMachine("^TestInsideMachine$", scriptVariable+"="+script, cgroupVariable+"="+cgroupFor(t, script)).CombinedOutput()
	switch {
	case testing.Verbose():
		t.Logf("%s", out)
	case err != nil:
		t.Logf("%s", ending(t, script, out))
	}
	require.NoError(t, err)
}

// shownLines is more than what a script prints after the line that failed.
const shownLines = 60

// ending is the last of what a failed script printed, which says why: a long text would be cut
// in its middle by what shows it. The whole goes into a file beside the tools.
func ending(t *testing.T, script string, out []byte) string {
	whole := filepath.Join("..", ".tools", "failed", strings.TrimSuffix(filepath.Base(script), ".txtar")+".log")
	require.NoError(t, os.MkdirAll(filepath.Dir(whole), 0o755))
	require.NoError(t, os.WriteFile(whole, out, 0o644))
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	return fmt.Sprintf("the last lines of %s:\n%s", whole, strings.Join(lines[max(0, len(lines)-shownLines):], "\n"))
}

// inMachine is this test binary in a new machine, running the inner test of the
// given name.
func inMachine(test string, env ...string) *exec.Cmd {
	cmd := lab.Command(os.Args[0], "-test.run="+test, "-test.v", "-test.timeout=90m")
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// TestInsideMachine is the inner half of TestScripts.
func TestInsideMachine(t *testing.T) {
	script := os.Getenv(scriptVariable)
	if script == "" {
		t.Skip("TestScripts runs it, in a machine of its own")
	}
	require.NoError(t, furnish())
	runScript(t, script, setup)
}

// runScript runs a script in the machine that this process has furnished.
func runScript(t *testing.T, script string, setup func(*testscript.Env) error) {
	// A shell has its background ignore it, which is inherited, and a script ends its own
	// background by it and waits for that.
	if signal.Ignored(os.Interrupt) {
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	text, err := os.ReadFile(script)
	require.NoError(t, err)
	name := stage + "/script/" + filepath.Base(script)
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, text, 0o644))
	testscript.Run(t, testscript.Params{Files: []string{name}, Setup: setup, Cmds: commands, Condition: condition, WorkdirRoot: stage})
}

// furnish makes the machine: folders, programs, the neighbour host.
func furnish() error {
	m := lab.Machine{Checkout: "..", Bin: cmp.Or(os.Getenv(binVariable), "../bin"), Tools: "../.tools/bin"}
	old, err := oldOf(os.Getenv(oldVariable))
	if err != nil {
		return err
	}
	err = errors.Join(m.Furnish(), writePrograms())
	if err == nil && old != nil {
		err = os.WriteFile(oldProgram, old, 0o755)
	}
	return err
}

// oldOf is the program of before; nil without.
func oldOf(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	return os.ReadFile(file)
}

// writePrograms makes the small programs of the scripts.
func writePrograms() error {
	if err := os.MkdirAll(stage+"/sbin", 0o755); err != nil {
		return err
	}
	programs := map[string]string{
		// With XDG_RUNTIME_DIR as a login session has it.
		"asuser": `exec setpriv --reuid ` + uid + ` --regid ` + uid + ` --clear-groups env HOME=/tmp XDG_RUNTIME_DIR=/run/user/` + uid + ` "$@"`,
		// One call of the plugin without cnitool, which hides the error's code. What it
		// prints has to be one JSON document or nothing.
		"verb": `export CNI_COMMAND=$1 CNI_NETNS=$2 CNI_CONTAINERID=${CNI_CONTAINERID-box} CNI_IFNAME=${CNI_IFNAME-eth0}
out=$("$AMBI" <"$3"); status=$?
[ -z "$out" ] || printf %s "$out" | peer json || exit 99
exit $status`,
		// The same with a configuration on the command line: the members that are added
		// to the three that every configuration has.
		// Without root the network is private unless the members say what it is.
		"try": `members=${3-}
case $members in
*'"network"'*) ;;
*'"rootless":{"'*) members=$(printf %s "$members" | sed 's/"rootless":{/&"network":"private",/') ;;
*'"rootless":'*) ;;
*) members='"rootless":{"network":"private"}'${members:+,$members} ;;
esac
printf '{"cniVersion":"1.1.0","name":"web","type":"ambi"%s}' "${members:+,$members}" | verb "$1" "$2" /dev/stdin`,
		// VERB NAME NUMBER: one call for the container NAME of the user's shared network, in
		// which it has the address .NUMBER and publishes its port 80 as 8080 + NUMBER.
		"member": `eval "netns=\$$2"; export CNI_CONTAINERID=$2
prev=; [ "$1" != CHECK ] || prev=',"prevResult":'$(cat result.$2)
asuser try "$1" "$netns" '"rootless":{"network":"shared"},"bridge":{"subnet":"10.4.0.0/24","subnet6":"fd04::/64"},
"runtimeConfig":{"ips":["10.4.0.'$3'","fd04::'$3'"],"portMappings":[{"hostPort":'$((8080 + $3))',"containerPort":80}'$UDP']}'"$prev${MORE:+,$MORE}" >said.$2 || { cat said.$2; exit 1; }
[ "$1" != ADD ] || mv said.$2 result.$2`,
		// A command in the hub's network namespace, in which one thread of the supervisor is.
		"inhub": `for thread in /proc/$(pgrep -x ambi)/task/*; do
	[ "$(readlink $thread/ns/net)" = "$(readlink /proc/self/ns/net)" ] || exec nsenter --net=$thread/ns/net "$@"
done
exit 1`,
		// A slirp4netns of before some options were invented: FILE OPTION…
		"makeslirp": `f=$1; shift
filter=cat; for o; do filter="$filter | grep -v -e '--$o[ =]' -e '--$o\$'"; done
printf '#!/bin/sh\nif [ "$1" = --help ]; then /usr/bin/slirp4netns --help | %s; exit; fi\nexec /usr/bin/slirp4netns "$@"\n' "$filter" >"$f"
chmod 0755 "$f"`,
		// What a process has open, each by its kind. How many pollers Go has, and the
		// library's duplicates of them, is its own business.
		"descriptors": `find /proc/$1/fd -mindepth 1 -printf '%l\n' 2>/dev/null |
sed -E -e 's/\[[0-9]+\]$//' -e 's,^/.*\.(alive|log)$,\1,' -e 's/anon_inode:\[?//' -e 's/eventpoll\]?/poll/' -e 's/eventfd\]?/wake/' -e 's/pidfd\]?/pidfd/' | sort | awk '!/poll|wake/ || !seen[$0]++'`,
		// kill -9 of the programs of a name, or of those that have a word on their
		// command line, too, and the wait for their end. "ambi" alone is a supervisor with its
		// keeper, of which each would start the other again: so neither may run meanwhile.
		"slay": `case "$*" in ambi) set -- 'ambi|ambi-keeper|exe' . STOP ;; esac
list() { for p in $(pgrep -x "$1"); do grep -qz -- "${2:-.}" /proc/$p/cmdline && echo $p; done; }
running() { for p; do grep -q '^State:.[^TtZX]' /proc/$p/task/*/status 2>/dev/null && return 0; done; return 1; }
pids=$(list "$@")
# One that has just begun is called exe until it has named itself, and may not be there yet.
[ -z "$3" ] || while kill -STOP $pids; more=$(list "$@"); [ "$more" != "$pids" ] || running $pids; do pids=$more; done
kill -9 $pids
for p in $pids; do while grep -q '^State:.[^ZX]' /proc/$p/task/*/status 2>/dev/null; do sleep 0.01; done; done`,
		// pgrep of what runs: what has ended, and only has to be waited for by who took it
		// over, does not (proc_pid_stat(5), Z and X).
		"running": `exec pgrep --runstates R,S,D,T,t,I "$@"`,
		// Waits until each supervisor of the user has a keeper that holds all it has to.
		"twins": `for sock in /run/user/40001/ambi/*.hub/sock; do
until asuser peer control $sock status | grep -q '"keeper":[0-9]'; do sleep 0.01; done
done`,
		// kill -STOP of the programs of a name, and the wait for each of their threads:
		// the signal takes effect where each of them is at the moment.
		"freeze": `for p in $(pgrep -x "$1"); do
kill -STOP $p
while grep -q '^State:.[^TtZX]' /proc/$p/task/*/status 2>/dev/null; do sleep 0.01; done
done`,
		// A delegate that fails at ADD.
		"failing": `case $CNI_COMMAND in
ADD) echo '{"code":11,"msg":"the moon is in the wrong phase"}'; exit 1 ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
esac`,
		// A delegate that writes down which verbs it is called with.
		"counting": `[ "$CNI_COMMAND" = VERSION ] || echo $CNI_COMMAND >>/run/counted
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0"}' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac`,
		// Another user of the host.
		"stranger": `exec setpriv --reuid 40002 --regid 40002 --clear-groups env HOME=/tmp "$@"`,
		"fakeroot": `exec asuser unshare -Ur "$@"`,
		// A command in cgroups of its own: its root is the one that the test has made for the machine.
		"incgroups": `echo 0 >$` + cgroupVariable + `/cgroup.procs
exec unshare --cgroup --mount --propagation private sh -c 'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' sh "$@"`,
		// The same in one of those cgroups: FOLDER CMD…
		"incgroup":    `echo 0 >/sys/fs/cgroup/$1/cgroup.procs; shift; exec "$@"`,
		"onneighbour": `exec ip netns exec neighbour "$@"`,
	}
	for name, text := range programs {
		if err := os.WriteFile(stage+"/sbin/"+name, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func setup(env *testscript.Env) error {
	// The folder of the script is the user's business, too.
	for dir := env.WorkDir; len(dir) > len(stage); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			return err
		}
	}
	env.Setenv("PATH", stage+"/sbin:"+stage+"/plugins:"+os.Getenv("PATH"))
	env.Setenv("CNI_PATH", stage+"/bin:"+stage+"/plugins:"+stage+"/sbin")
	env.Setenv("NETCONFPATH", env.WorkDir)
	env.Setenv("AMBI", stage+"/bin/ambi")
	env.Setenv("HOME", "/root")
	if big := os.Getenv(bigVariable); big != "" {
		env.Setenv(bigVariable, big)
	}
	env.Setenv(cgroupVariable, os.Getenv(cgroupVariable))
	if os.Getenv(oldVariable) != "" {
		env.Setenv(oldVariable, oldProgram)
	}
	if rounds := os.Getenv(roundsVariable); rounds != "" {
		env.Setenv("ROUNDS", rounds)
	}
	return os.Chdir(env.WorkDir)
}

func TestMain(m *testing.M) {
	unix.Umask(0o022)
	os.Exit(m.Run())
}
