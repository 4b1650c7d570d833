package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// binVariable is the folder of another build of ambi than ../bin for the machines.
const binVariable = "AMBI_TEST_BIN"

type attack struct{ by, what, script string }

func attacks(t *testing.T) []attack {
	t.Helper()
	text, err := os.ReadFile("attacks.txt")
	require.NoError(t, err)
	var all []attack
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		who, script, ok := strings.Cut(line, "|")
		by, what, named := strings.Cut(who, ":")
		require.True(t, ok && named, "attacks.txt: %s", line)
		all = append(all, attack{by, strings.TrimSpace(what), strings.TrimSpace(script)})
	}
	return all
}

// TestAttackList holds the list and the scripts together.
func TestAttackList(t *testing.T) {
	var listed []string
	for _, a := range attacks(t) {
		require.FileExists(t, "testdata/"+a.script+".txtar")
		require.NotContains(t, listed, a.script)
		listed = append(listed, a.script)
	}
	scripts, err := filepath.Glob("testdata/*attack*.txtar")
	require.NoError(t, err)
	for _, script := range scripts {
		require.Contains(t, listed, strings.TrimSuffix(filepath.Base(script), ".txtar"))
	}
}

// TestAttacks runs each attack in a machine of its own and prints a line about it.
func TestAttacks(t *testing.T) {
	if os.Getenv("AMBI_TEST_ATTACKS") == "" {
		t.Skip("make attack runs it; TestScripts has the same scripts")
	}
	for _, a := range attacks(t) {
		t.Run(a.script, func(t *testing.T) {
			t.Parallel()
			said, outcome := "", "held"
			out, err := inMachine("^TestInsideMachine$", scriptVariable+"=testdata/"+a.script+".txtar").CombinedOutput()
			if err != nil {
				said, outcome = string(out), "BROKEN"
			}
			fmt.Printf("attack: %-7s %-13s %s\n", outcome, a.by, a.what)
			require.NoError(t, err, said)
		})
	}
}

// wall is a piece of the code that keeps an attack out, and what the code would be without.
// The line of the script that fails then begins with fails.
type wall struct{ name, file, has, lacks, script, fails string }

var walls = []wall{
	{"what leaves a bridge's port is looked at", "bridge/layout.go", `goTo("member"))),`, `accept)),`, "shared-attack-addresses", "! stdout ."},
	{"the filter on the driver's tap", "rootless/driver/tapfilter.go", "14: {Code: unix.BPF_RET | unix.BPF_K, K: 0}", "14: {Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}", "shared-attack-loopback", "inside a sh closed.sh"},
	{"the control socket asks for its client's uid", "rootless/supervisor/control.go", "int(peer.Uid) != owner", "peer == nil", "shared-attack-processes", `stdout -count=4 '^{"error"`},
	{"packets from the wire to 127.0.0.0/8 are dropped", "portmap/nat/nftchains.go", "loopback4(16), rule{&expr.Verdict{Kind: expr.VerdictDrop}}", "loopback4(16), rule{&expr.Verdict{Kind: expr.VerdictAccept}}", "root-localnet", "exec sh -e story"},
	{"a port leads to no address of the host", "portmap/nat/targets.go", "if ours {", "if ours && ip.IsUnspecified() {", "root-targets", "exec sh each.sh"},
}

var failedAt = regexp.MustCompile("FAIL: " + stage + `\S*\.txtar:(\d+):`)

// TestMissingWalls builds ambi without one wall after the other: the attack that it keeps
// out has to get through.
func TestMissingWalls(t *testing.T) {
	if os.Getenv("AMBI_TEST_WALLS") == "" {
		t.Skip("make attack-walls runs it")
	}
	for _, w := range walls {
		t.Run(w.script, func(t *testing.T) {
			t.Parallel()
			cmd := inMachine("^TestInsideMachine$", scriptVariable+"=testdata/"+w.script+".txtar", binVariable+"="+buildWithout(t, w))
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "without this wall the attack is held all the same: %s", w.name)
			at := failedAt.FindSubmatch(out)
			require.NotNil(t, at, "%s", out)
			number, _ := strconv.Atoi(string(at[1]))
			script, err := os.ReadFile("testdata/" + w.script + ".txtar")
			require.NoError(t, err)
			line := strings.Split(string(script), "\n")[number-1]
			require.True(t, strings.HasPrefix(line, w.fails), "line %d, which begins otherwise than %q: %s\n%s", number, w.fails, line, out)
			fmt.Printf("attack: seen, without the wall: %s (line %d: %s)\n", w.name, number, line)
		})
	}
}

// TestWallsAreThere: the walls are still written as TestMissingWalls knows them.
func TestWallsAreThere(t *testing.T) {
	for _, w := range walls {
		w.read(t)
	}
}

// read returns the file with the wall in it.
func (w wall) read(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../" + w.file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), w.has), "%s: it is no longer written as %q", w.file, w.has)
	return string(text)
}

// buildWithout builds the tree with one change in the compiler's eyes only ("go help build",
// -overlay), and returns the binary's folder.
func buildWithout(t *testing.T, w wall) string {
	t.Helper()
	top, err := filepath.Abs("..")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/changed.go", []byte(strings.Replace(w.read(t), w.has, w.lacks, 1)), 0o600))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(top, w.file): dir + "/changed.go"}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/overlay", overlay, 0o600))
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", dir+"/overlay", "-o", dir+"/bin/ambi", ".")
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir + "/bin"
}
