package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// killing is an ADD that is killed, and what takes away what it left.
type killing struct {
	chain, path, verb string
	more              string // keys of the configuration
	lost              bool   // the record, too
}

var killings = map[string]killing{
	"bridge DEL":             {chain: "bridge", verb: "DEL"},
	"bridge GC":              {chain: "bridge", verb: "GC"},
	"bridge 1.10.0 GC":       {chain: "bridge", verb: "GC", path: stage + "/plugins/1.10.0"},
	"bridge 1.1.1 GC":        {chain: "bridge", verb: "GC", path: "/usr/lib/cni"},
	"bridge iptables DEL":    {chain: "bridge", verb: "DEL", more: `"portmap":{"backend":"iptables"},`},
	"bridge record lost DEL": {chain: "bridge", verb: "DEL", lost: true},
	"ptp GC":                 {chain: "ptp", verb: "GC"},
	"ptp 1.1.1 DEL":          {chain: "ptp", verb: "DEL", path: "/usr/lib/cni"},
	"ptp record lost DEL":    {chain: "ptp", verb: "DEL", lost: true},
}

// phase is a killing's place among those of its chain, from 0 to less than 1: each
// kills at moments between those of the others.
func phase(name string) float64 {
	var same []string
	for other, k := range killings {
		if k.chain == killings[name].chain {
			same = append(same, other)
		}
	}
	slices.Sort(same)
	return float64(slices.Index(same, name)) / float64(len(same))
}

// killADD kills ADD at moments evenly spread over its life, then calls DEL, or GC
// for a container whose runtime knows nothing of it; then the machine is as
// before.
func killADD(t *testing.T, k killing, phase float64) {
	config := rootConfig(chains[k.chain], k.more+published)
	add := call{verb: "ADD", container: "box", netns: "/run/netns/box", config: config, path: k.path}
	clean := call{verb: k.verb, container: "box", netns: "/run/netns/box", config: config, path: k.path}
	if k.verb == "GC" {
		clean.config = rootConfig(chains[k.chain], `"cni.dev/valid-attachments":[]`)
	}
	sh(t, "ip netns add box")
	var life time.Duration
	for range 3 {
		began := time.Now()
		add.must(t)
		life = max(life, time.Since(began))
		clean.must(t)
	}
	before := machine.Take()
	finished := 0
	for i := range moments {
		if done, took := killed(t, add, time.Duration(float64(life)*(float64(i)+phase)/moments)); done {
			finished++
			life = min(life, took) // the machine was busier before
		}
		if k.lost {
			sh(t, "rm -f /run/ambi/own@box@eth0.json")
		}
		clean.must(t)
		requireSame(t, before)
	}
	t.Logf("ADD lives %s; %d of %d were done before the signal", life, finished, moments)
	add.must(t)
	clean.must(t)
	requireSame(t, before)
}

// moments is how many there are in a verb's life for the signal to come: for an ADD
// of a bridge a hundred in all its killings, and sixty for ptp. (e2e/fault kills at
// every single step.)
const moments = 20

// momentsOfDEL are more, since there is one such killing only.
const momentsOfDEL = 50

// killed starts a call and kills it at that moment; it says whether it was done
// before, and how long it lived.
func killed(t *testing.T, c call, at time.Duration) (done bool, lived time.Duration) {
	t.Helper()
	cmd := c.command()
	return killedAt(t, cmd, at, func() { _ = cmd.Process.Kill() })
}

// killedAt starts a program and has it killed at that moment, or at its end when that
// comes first: a machine that was busy may not be any more.
func killedAt(t *testing.T, cmd *exec.Cmd, at time.Duration, kill func()) (done bool, lived time.Duration) {
	t.Helper()
	began := time.Now()
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		lived = time.Since(began)
		kill() // what it has started
		return err == nil, lived
	case <-time.After(at): // the moment to be tested, not a wait
		kill()
		return <-ended == nil, time.Since(began)
	}
}

// killDEL kills DEL at moments evenly spread over its life, then calls it again.
func killDEL(t *testing.T) {
	config := rootConfig(chains["bridge"], published)
	add := call{verb: "ADD", container: "box", netns: "/run/netns/box", config: config}
	del := call{verb: "DEL", container: "box", netns: "/run/netns/box", config: config}
	sh(t, "ip netns add box")
	var life time.Duration
	for range 3 {
		add.must(t)
		began := time.Now()
		del.must(t)
		life = max(life, time.Since(began))
	}
	before := machine.Take()
	for i := range momentsOfDEL {
		add.must(t)
		if done, took := killed(t, del, life*time.Duration(i)/momentsOfDEL); done {
			life = min(life, took)
		}
		del.must(t)
		requireSame(t, before)
	}
}

// attachInParallel attaches a hundred containers at once, and detaches them.
func attachInParallel(t *testing.T) {
	const n = 100
	configOf := func(i int) string {
		return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"web","type":"ambi","runtimeConfig":{"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"},{"hostPort":%d,"containerPort":53,"protocol":"udp"}]}}`, 20000+i, 30000+i)
	}
	calls := func(verb string) []call {
		all := make([]call, n)
		for i := range all {
			all[i] = call{verb: verb, container: fmt.Sprintf("box%d", i), netns: fmt.Sprintf("/run/netns/box%d", i), config: configOf(i)}
		}
		return all
	}
	sh(t, "seq 0 %d | xargs -P 20 -I'{}' ip netns add box'{}'", n-1)
	calls("ADD")[0].must(t)
	calls("DEL")[0].must(t)
	before := machine.Take()

	var addresses []string
	for _, out := range runAll(t, calls("ADD")) {
		var result struct {
			IPs []struct{ Address string }
		}
		require.NoError(t, json.Unmarshal([]byte(out), &result))
		require.Len(t, result.IPs, 1)
		require.NotContains(t, addresses, result.IPs[0].Address, "given out twice")
		addresses = append(addresses, result.IPs[0].Address)
	}
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(addresses))), n)
	for _, i := range []int{0, n / 2, n - 1} {
		stop := start(t, "ip", "netns", "exec", fmt.Sprintf("box%d", i), "peer", "tcp", ":80")
		eventually(t, "an answer of container "+fmt.Sprint(i), func() bool {
			return onNeighbour("peer", "ask", "tcp", fmt.Sprintf("192.0.2.1:%d", 20000+i)) != ""
		})
		stop()
	}
	for _, out := range runAll(t, calls("DEL")) {
		require.Empty(t, out)
	}
	requireSame(t, before)
}

// runAll runs all calls at once and returns what they printed.
func runAll(t *testing.T, calls []call) []string {
	t.Helper()
	outs, errs := make([]string, len(calls)), make([]error, len(calls))
	var running sync.WaitGroup
	for i, c := range calls {
		running.Go(func() { outs[i], errs[i] = c.run() })
	}
	running.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	return outs
}
