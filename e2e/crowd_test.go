package e2e

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/lab"
	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// These ordeals are for shared networks, in which many containers have one supervisor.

func init() {
	ordeals["fifty-share"] = fiftyShare
	ordeals["shared-rounds"] = func(t *testing.T) { sharedRounds(t, shared) }
	ordeals["shared-rounds-plugins"] = func(t *testing.T) { sharedRounds(t, sharedChain) }
}

const (
	private     = `"rootless":{"network":"private"}`
	shared      = `"rootless":{"network":"shared"}`
	sharedChain = shared + `,"delegates":[{"type":"bridge","bridge":"crowd0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}},{"type":"tuning","mtu":1400}]`
)

// fiftyShare adds and deletes fifty containers of one network, all at once.
func fiftyShare(t *testing.T) {
	boxes := crowd(t, 50, shared)
	before := machine.Take()
	for range 2 {
		results := together(t, boxes, "ADD", nothing)
		require.Len(t, supervisors(t, 1), 1)
		require.Len(t, processesNamed("slirp4netns"), 1)
		together(t, boxes, "CHECK", func(n int) string { return `"prevResult":` + results[n] })
		together(t, boxes, "DEL", nothing)
		require.Empty(t, machine.Difference(before), "after all DELs")
	}
}

// crowd makes containers, each with a port, and has the first one learn what there is to learn.
func crowd(t *testing.T, many int, config string) (boxes []*box) {
	for i := range many {
		ports := fmt.Sprintf(`"runtimeConfig":{"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]}`, 20000+i)
		boxes = append(boxes, newBox(t, fmt.Sprintf("box%d", i), config+","+ports))
	}
	boxes[0].must("ADD", "")
	boxes[0].must("DEL", "")
	return boxes
}

// together calls a verb for all at once, the n-th one with the members of n, and is what each
// call printed.
func together(t *testing.T, boxes []*box, verb string, members func(n int) string) (said []string) {
	said = make([]string, len(boxes))
	errs := make([]error, len(boxes))
	started := time.Now()
	var wg sync.WaitGroup
	for n, b := range boxes {
		wg.Go(func() { said[n], errs[n] = b.try(verb, members(n)) })
	}
	wg.Wait()
	t.Logf("%d times %s at once: %s", len(boxes), verb, time.Since(started).Round(time.Millisecond))
	for n, b := range boxes {
		require.NoError(t, errs[n], "%s %s: %s", verb, b.id, said[n])
	}
	return said
}

func nothing(int) string { return "" }

// roundsVariable is how many rounds there are, here and in scripts as $ROUNDS; without it
// a few.
const roundsVariable = "AMBI_TEST_ROUNDS"

// sharedRounds is rounds of ADD, DEL, kills of any process and namespaces that go, each at
// random. A round ends with a DEL of all that are there, which has to succeed, and with the
// machine as it was.
func sharedRounds(t *testing.T, config string) {
	const few, containers, callers, acts = 5, 8, 4, 6
	rounds, _ := strconv.Atoi(os.Getenv(roundsVariable))
	rounds = cmp.Or(rounds, few)
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d rounds, seed %d", rounds, seed)
	boxes := crowd(t, containers, config)
	before := unnumbered()
	did := newTally()
	for round := range rounds {
		var wg sync.WaitGroup
		for caller := range callers {
			own := boxes[caller*containers/callers : (caller+1)*containers/callers]
			random := rand.New(rand.NewPCG(seed, uint64(round*callers+caller)))
			wg.Go(func() {
				for range acts {
					did.note(act(own[random.IntN(len(own))], random))
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		for _, b := range boxes {
			b.must("DEL", "")
			b.again()
		}
		require.Empty(t, snapshot.Await(patience, before, unnumbered), "after round %d of seed %d (- before, + now)", round, seed)
	}
	t.Logf("%v", did.counts)
}

var namespaceNumber = regexp.MustCompile(`(?m)^([a-z_]+):\[\d+\]$`)

// unnumbered is the machine, in which a namespace may be another one than before.
func unnumbered() snapshot.Snapshot {
	return snapshot.Snapshot(namespaceNumber.ReplaceAllString(string(machine.Take()), "$1"))
}

// again makes the container again if it has ended.
func (b *box) again() {
	if b.PID != 0 {
		return
	}
	c, err := lab.NewContainer(b.id, true)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = c.End() })
	b.Container = c
}

// act does one thing, and says what.
func act(b *box, random *rand.Rand) string {
	verb := func(name string) string {
		cmd, _ := b.command(name, "")
		// It may be killed by others, or its hub or its plugins may.
		r, err := lab.Run(cmd, nil)
		require.NoError(b.t, err)
		require.NotContains(b.t, r.Out+r.Stderr, "internal error")
		return fmt.Sprintf("%s %t", name, r.Exit == 0)
	}
	switch n := random.IntN(20); {
	case b.PID == 0:
		return "late " + verb("DEL")
	case n < 9:
		return verb("ADD")
	case n < 13:
		return verb("DEL")
	case n < 15:
		cmd, _ := b.command([]string{"ADD", "DEL"}[random.IntN(2)], "")
		killedAt(b.t, cmd, time.Duration(random.IntN(100))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		return "verb killed"
	case n < 18:
		return killAny(random)
	default:
		require.NoError(b.t, b.End())
		b.PID = 0
		return "namespace deleted"
	}
}

// killAny kills any process of ambi's, its drivers or its plugins.
func killAny(random *rand.Rand) string {
	names := []string{"ambi", "slirp4netns", "bridge", "host-local", "tuning"}
	name := names[random.IntN(len(names))]
	pids := processesNamed(name)
	if len(pids) == 0 {
		return "nothing to kill"
	}
	_ = syscall.Kill(pids[random.IntN(len(pids))], syscall.SIGKILL) // it may have ended
	return name + " killed"
}

// tally counts what was done.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func newTally() *tally { return &tally{counts: map[string]int{}} }

func (t *tally) note(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what]++
}
