package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/lab"
	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// enduranceVariable names the ordeal that this process is to run in a machine.
const enduranceVariable = "AMBI_E2E_ENDURANCE"

// The ordeals are for the rootless side: what no number of kills and attachments
// may leave behind. Their inner halves run in machines, as a user.
var ordeals = map[string]func(t *testing.T){
	"add-killed-then-DEL": func(t *testing.T) { addKilled(t, 0, "DEL", "") },
	"add-killed-then-GC":  func(t *testing.T) { addKilled(t, 0.5, "GC", `"cni.dev/valid-attachments":[]`) },
	"add-group-killed":    addGroupKilled,
	"helpers-killed":      helpersKilled,
	"hundred":             hundred,
}

func TestEndurance(t *testing.T) {
	if os.Getenv(enduranceVariable) != "" {
		t.Skip("inside a machine")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	if testing.Short() {
		t.Skip("long")
	}
	t.Parallel()
	for name := range ordeals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := inMachine("^TestEnduranceInside$", enduranceVariable+"="+name).CombinedOutput()
			t.Logf("%s", out)
			require.NoError(t, err)
		})
	}
}

// TestEnduranceInside is the inner half of TestEndurance.
func TestEnduranceInside(t *testing.T) {
	ordeal, ok := ordeals[os.Getenv(enduranceVariable)]
	if !ok {
		t.Skip("TestEndurance runs it, in a machine of its own")
	}
	require.NoError(t, furnish())
	require.NoError(t, os.Chdir("/"))
	ordeal(t)
}

// box is a container of the user, and how ambi is called for it.
type box struct {
	*lab.Container
	t      *testing.T
	id     string
	config string // members beside cniVersion, name and type
}

func newBox(t *testing.T, id, config string) *box {
	c, err := lab.NewContainer(id, true)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.End() })
	return &box{Container: c, t: t, id: id, config: config}
}

// command is a verb, not started. No shell is between, so that the pid is the plugin's.
func (b *box) command(verb, members string) (cmd *exec.Cmd, output *bytes.Buffer) {
	config := `{"cniVersion":"1.1.0","name":"web","type":"ambi"`
	for _, m := range []string{b.config, members} {
		if m != "" {
			config += "," + m
		}
	}
	cmd = lab.Verb{Name: verb, ContainerID: b.id, IfName: "eth0", Netns: b.Netns, Config: config + "}", UID: b.UID}.Command()
	output = &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = output, output
	return cmd, output
}

func (b *box) try(verb, members string) (string, error) {
	cmd, output := b.command(verb, members)
	err := cmd.Run()
	return output.String(), err
}

func (b *box) must(verb, members string) string {
	out, err := b.try(verb, members)
	require.NoError(b.t, err, "%s %s: %s", verb, b.id, out)
	return out
}

const prevResult = `"prevResult":{"cniVersion":"1.1.0"}`

func (b *box) healthy() bool {
	_, err := b.try("CHECK", prevResult)
	return err == nil
}

// inside runs a program in the container's namespace.
func (b *box) inside(args ...string) (string, error) {
	args = append(slices.Clone(b.Enter), args...)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// state is the machine and the inside of the container.
func (b *box) state() snapshot.Snapshot {
	return machine.Take() + snapshot.Network(b.Enter...)
}

// requireSame compares at once: a verb that has returned has nothing left to do.
func (b *box) requireSame(before snapshot.Snapshot, when string) {
	require.Empty(b.t, snapshot.Await(0, before, b.state), when+" (- before, + now)")
}

const onePort = `"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":5353,"containerPort":53,"protocol":"udp"}]}`

// duration is how long an ADD takes here, the median of some.
func (b *box) duration() time.Duration {
	var took []time.Duration
	for range 9 {
		started := time.Now()
		b.must("ADD", "")
		took = append(took, time.Since(started))
		b.must("DEL", "")
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// killMoments is how many times ADD is killed in each way.
const killMoments = 50

// addKilled kills ADD at moments spread evenly over its run and a little more; phase,
// from 0 to less than 1, is where they lie between those of the other addKilled.
func addKilled(t *testing.T, phase float64, verb, members string) {
	const killMoments = killMoments / 2
	b := newBox(t, "box", private+","+onePort)
	b.must("ADD", "") // so that what is learnt about slirp4netns is known
	b.must("DEL", "")
	took := b.duration()
	before := b.state()
	reached := map[string]int{}
	for i := range killMoments {
		cmd, _ := b.command("ADD", "")
		killedAt(t, cmd, time.Duration(float64(took)*(float64(i)+phase)/(killMoments-3)), func() { _ = cmd.Process.Kill() })
		reached[stateOfRecord()]++
		b.must(verb, members)
		b.requireSame(before, fmt.Sprintf("after %s of an ADD killed at moment %d of %d", verb, i, killMoments))
	}
	t.Logf("ADD takes %s; killed %d times with the record being %v, then %s: nothing left", took, killMoments, reached, verb)
	b.must("ADD", "")
	b.must("DEL", "")
	b.requireSame(before, "in the end")
}

var recordState = regexp.MustCompile(`"state":"(\w+)"`)

// stateOfRecord says how far ADD got.
func stateOfRecord() string {
	files, _ := filepath.Glob("/run/user/" + uid + "/ambi/*.json")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		if m := recordState.FindSubmatch(text); m != nil {
			return string(m[1])
		}
	}
	return "absent"
}

// addGroupKilled kills ADD with all that it has started and that is still in its
// process group, then calls ADD again: it makes room for itself.
func addGroupKilled(t *testing.T) {
	b := newBox(t, "box", private+","+onePort)
	b.must("ADD", "")
	b.must("DEL", "")
	took := b.duration()
	before := b.state()
	again := 0
	for i := range killMoments {
		cmd, _ := b.command("ADD", "")
		killedAt(t, cmd, took*time.Duration(i)/killMoments, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		if stateOfRecord() != "ready" {
			b.must("ADD", "")
			again++
		}
		require.True(t, b.healthy())
		b.must("DEL", "")
		b.requireSame(before, fmt.Sprintf("after the second ADD and DEL, moment %d of %d", i, killMoments))
	}
	t.Logf("ADD killed with its group at %d moments, called again at once %d times: nothing left", killMoments, again)
}

// processesNamed are the pids of the programs of this name.
func processesNamed(name string) (pids []int) {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, comm := range comms {
		folder := filepath.Dir(comm)
		stat, _ := os.ReadFile(folder + "/stat")
		if text, err := os.ReadFile(comm); err == nil && string(text) == name+"\n" && !strings.Contains(string(stat), ") Z ") {
			pid, _ := strconv.Atoi(filepath.Base(folder))
			pids = append(pids, pid)
		}
	}
	return pids
}

func kill(t *testing.T, name string) {
	pids := processesNamed(name)
	require.Len(t, pids, 1, name)
	require.NoError(t, syscall.Kill(pids[0], syscall.SIGKILL))
	require.True(t, waitUntil(patience, func() bool { return !slices.Contains(processesNamed(name), pids[0]) }))
}

// supervisors are those processes, when so many keepers are there: one that was just started
// is called as the supervisor until it has another program, and then has named itself.
func supervisors(t *testing.T, keepers int) []int {
	require.True(t, waitUntil(patience, func() bool { return len(processesNamed("ambi-keeper")) == keepers }), "the keeper comes with the supervisor")
	return processesNamed("ambi")
}

// killTwins kills a supervisor and its keeper, which would start each other again.
func killTwins(t *testing.T) {
	twins := append(supervisors(t, 1), processesNamed("ambi-keeper")...)
	require.Len(t, twins, 2)
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range twins {
			require.NoError(t, syscall.Kill(pid, signal))
		}
	}
	require.True(t, waitUntil(patience, func() bool { return len(processesNamed("ambi"))+len(processesNamed("ambi-keeper")) == 0 }))
}

// helpersKilled kills slirp4netns and the twins, supervisor and keeper, ten times each.
func helpersKilled(t *testing.T) {
	const times = 10
	b := newBox(t, "box", private+","+onePort)
	server := exec.Command("nsenter", "--net="+b.Netns, stage+"/plugins/peer", "tcp", ":80")
	require.NoError(t, server.Start())
	outside := exec.Command(stage+"/plugins/peer", "tcp", "192.0.2.1:7001")
	require.NoError(t, outside.Start())
	t.Cleanup(func() {
		for _, cmd := range []*exec.Cmd{server, outside} {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	peer := stage + "/plugins/peer"
	require.True(t, waitUntil(patience, func() bool {
		_, err := b.inside(peer, "ask", "tcp", "127.0.0.1:80")
		return err == nil && exec.Command(peer, "ask", "tcp", "192.0.2.1:7001").Run() == nil
	}))
	b.must("ADD", "")
	b.must("DEL", "")
	before := b.state()
	for i := range times {
		b.must("ADD", "")
		kill(t, "slirp4netns")
		require.True(t, waitUntil(patience, b.healthy), "slirp4netns killed, %d", i)
		require.NoError(t, exec.Command(peer, "ask", "tcp", "127.0.0.1:8080").Run())
		require.True(t, waitUntil(patience, func() bool {
			_, err := b.inside(peer, "ask", "tcp", "192.0.2.1:7001")
			return err == nil
		}), "a new connection outwards")
		b.must("DEL", "")
		b.requireSame(before, fmt.Sprintf("slirp4netns killed, %d", i))
	}
	for i := range times {
		b.must("ADD", "")
		killTwins(t)
		out, err := b.try("CHECK", prevResult)
		require.Error(t, err)
		require.Contains(t, out, "its supervisor is not running")
		if i%2 == 0 {
			b.must("DEL", "")
			b.requireSame(before, fmt.Sprintf("the supervisor killed, %d", i))
			b.must("ADD", "")
		} else {
			b.must("ADD", "")
		}
		require.True(t, b.healthy())
		require.NoError(t, exec.Command(peer, "ask", "tcp", "127.0.0.1:8080").Run())
		b.must("DEL", "")
		b.requireSame(before, fmt.Sprintf("the supervisor killed, %d", i))
	}
	t.Logf("slirp4netns and the supervisor killed %d times each: nothing left", times)
}

// hundred adds and deletes a hundred attachments of one user, all at once.
func hundred(t *testing.T) {
	const many = 100
	boxes := crowd(t, many, private)
	before := machine.Take()
	together(t, boxes, "ADD", nothing)
	require.Len(t, processesNamed("slirp4netns"), many)
	require.Len(t, supervisors(t, many), many)
	together(t, boxes, "CHECK", func(int) string { return prevResult })
	for _, name := range []string{"ambi", "slirp4netns"} {
		resident, private := memory(t, processesNamed(name))
		t.Logf("memory of an attachment, %s: %d kB resident, %d kB of it private (medians of %d)", map[string]string{"ambi": "supervisor"}[name]+strings.TrimPrefix(name, "ambi"), resident, private, many)
	}
	together(t, boxes, "DEL", nothing)
	require.Empty(t, machine.Difference(before), "after all DELs")
}

// memory is resident and private memory of processes in kB, the medians.
func memory(t *testing.T, pids []int) (resident, private int) {
	var all, own []int
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		require.NoError(t, err)
		kB := func(key string) int {
			m := regexp.MustCompile(`(?m)^` + key + `: +(\d+) kB`).FindSubmatch(text)
			require.NotNil(t, m, key)
			n, _ := strconv.Atoi(string(m[1]))
			return n
		}
		all = append(all, kB("Rss"))
		own = append(own, kB("Private_Clean")+kB("Private_Dirty"))
	}
	slices.Sort(all)
	slices.Sort(own)
	return all[len(all)/2], own[len(own)/2]
}
