package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/lab"
	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// boxes is how many containers come and go.
const boxes = 5

// settled is how long the kernel may take to take things apart in the end.
const settled = 2 * time.Minute

// world is a machine in use.
type world struct {
	*job
	networks []network
	boxes    []*box
	veteran  *box // one that stays, and whose supervisor is measured
	began    time.Time

	mu        sync.Mutex
	measuring bool // while the callers are at work
	outcome   outcome
}

// box is a container that is killed and made again.
type box struct {
	id string

	mu    sync.RWMutex // held while the container is exchanged
	inner *lab.Container

	results sync.Map // by network's name, what the last ADD printed and its runtimeConfig
}

type added struct{ result, runtimeConfig string }

// inside does a job that standard input describes, and prints the outcome.
func inside() error {
	w := &world{job: &job{}}
	if err := json.NewDecoder(os.Stdin).Decode(w.job); err != nil {
		return err
	}
	if err := w.Machine.Furnish(); err != nil {
		return err
	}
	w.networks = networks[w.Mode]
	w.outcome = outcome{Mode: w.Mode, Calls: map[string]int{}, Failed: map[string]int{}, Killed: map[string]int{}, Errors: map[string]int{}}
	if err := w.once(); err != nil {
		return err
	}
	before := w.look()
	if err := w.open(); err != nil {
		return err
	}
	w.began, w.measuring = time.Now(), true
	w.soak()
	w.measuring = false
	w.close()
	if left := snapshot.Await(settled, before, w.look); left != "" {
		w.problem("left behind (- before, + now):\n%s", left)
	}
	return json.NewEncoder(os.Stdout).Encode(w.outcome)
}

func (w *world) look() snapshot.Snapshot { return snapshot.Options{Ignore: []string{lab.Stage}}.Take() }

func (w *world) rootless() bool { return w.Mode != "root" }

// veterans says whether a daemon is the supervisor of the one that stays: its own, or that
// of the network that it shares with others.
func (w *world) veterans(d daemon) bool {
	about := "/" + w.veteran.id + "/"
	if w.Mode == "shared" {
		about = " supervisor " + w.networks[0].name
	}
	return d.supervisor && strings.Contains(d.commandLine, about)
}

// once uses every network once, so that what is made once for all is there.
func (w *world) once() error {
	b := &box{id: "first"}
	var err error
	if b.inner, err = lab.NewContainer(b.id, w.rootless()); err != nil {
		return err
	}
	ports := `"runtimeConfig":{"portMappings":[{"hostPort":20000,"containerPort":80,"protocol":"tcp"}]}`
	for i := range w.networks {
		for _, verb := range []string{"ADD", "DEL"} {
			if err := w.must(b, verb, i, ports, ""); err != nil {
				return err
			}
		}
	}
	return b.inner.End()
}

// open makes the containers.
func (w *world) open() error {
	for i := range boxes + 1 {
		b := &box{id: fmt.Sprintf("box%d", i)}
		var err error
		if b.inner, err = lab.NewContainer(b.id, w.rootless()); err != nil {
			return err
		}
		w.boxes = append(w.boxes, b)
	}
	w.veteran, w.boxes = w.boxes[boxes], w.boxes[:boxes]
	ports := `"runtimeConfig":{"portMappings":[{"hostPort":19999,"containerPort":80,"protocol":"tcp"}]}`
	return w.must(w.veteran, "ADD", 0, ports, "")
}

// must is a call that has to succeed.
func (w *world) must(b *box, verb string, network int, runtimeConfig, more string) error {
	r, err := w.call(b, verb, network, runtimeConfig, more)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("status %d: %s%s", r.Exit, r.Out, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("%s of %s in network %s: %w", verb, b.id, w.networks[network].name, err)
	}
	return nil
}

// soak has the callers call until the time is over and enough has succeeded.
func (w *world) soak() {
	var wg sync.WaitGroup
	end := w.began.Add(w.Time)
	for i := range w.Callers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w.Seed, uint64(i)))
			for time.Now().Before(end) || w.succeeded() < w.Least {
				w.act(r)
			}
		})
	}
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { w.watch(stop) })
	wg.Wait()
	close(stop)
	watching.Wait()
}

// succeeded is how many ADDs have.
func (w *world) succeeded() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outcome.Calls["ADD"] - w.outcome.Failed["ADD"]
}

// close takes everything down. Nobody else is at work: every DEL has to succeed, and
// so has the last GC.
func (w *world) close() {
	for _, b := range append(slices.Clone(w.boxes), w.veteran) {
		for i := range w.networks {
			if err := w.must(b, "DEL", i, "", ""); err != nil {
				w.problem("in the end: %v", err)
			}
		}
	}
	for i := range w.networks {
		if err := w.must(w.veteran, "GC", i, "", `"cni.dev/valid-attachments":[]`); err != nil {
			w.problem("in the end: %v", err)
		}
	}
	for _, b := range append(slices.Clone(w.boxes), w.veteran) {
		if err := b.inner.End(); err != nil {
			w.problem("%v", err)
		}
	}
}

// acts are what a caller does, each as often as its weight says.
var acts = []struct {
	weight int
	do     func(w *world, r *rand.Rand)
}{
	{30, func(w *world, r *rand.Rand) { w.add(r) }},
	{24, func(w *world, r *rand.Rand) { w.del(r) }},
	{14, func(w *world, r *rand.Rand) { w.simple(r, "CHECK") }},
	{6, func(w *world, r *rand.Rand) { w.simple(r, "STATUS") }},
	{3, func(w *world, r *rand.Rand) { w.simple(r, "VERSION") }},
	{5, func(w *world, r *rand.Rand) { w.collect(r) }},
	{8, func(w *world, r *rand.Rand) { w.bad(r) }},
	{6, func(w *world, r *rand.Rand) { w.killVerb(r) }},
	{2, func(w *world, r *rand.Rand) { w.killDaemon(r) }},
	{2, func(w *world, r *rand.Rand) { w.exchange(r) }},
}

func (w *world) act(r *rand.Rand) {
	sum := 0
	for _, a := range acts {
		sum += a.weight
	}
	n := r.IntN(sum)
	for _, a := range acts {
		if n -= a.weight; n < 0 {
			a.do(w, r)
			return
		}
	}
}

func (w *world) any(r *rand.Rand) (*box, int) {
	return w.boxes[r.IntN(len(w.boxes))], r.IntN(len(w.networks))
}

// verb is a call about a container in a network. CHECK and DEL get what ADD got and
// printed, as from a runtime; when that is not known, they get nothing.
func (w *world) verb(b *box, name string, network int, runtimeConfig, more string) lab.Verb {
	n := w.networks[network]
	if name == "CHECK" || name == "DEL" {
		if known, ok := b.results.Load(n.name); ok {
			runtimeConfig = known.(added).runtimeConfig
			more = `"prevResult":` + known.(added).result
		}
	}
	return lab.Verb{
		Name: name, ContainerID: b.id, IfName: fmt.Sprintf("eth%d", network), Netns: b.inner.Netns, UID: b.inner.UID,
		Config: n.configuration(runtimeConfig, more),
	}
}

// call calls the plugin, and notes how it went.
func (w *world) call(b *box, name string, network int, runtimeConfig, more string) (*lab.Result, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	v := w.verb(b, name, network, runtimeConfig, more)
	r, err := lab.Run(v.Command(), nil)
	if err != nil {
		w.problem("%s of %s in %s: %v", name, b.id, w.networks[network].name, err)
		return &lab.Result{}, err
	}
	w.note(v, r)
	if name == "ADD" && r.Exit == 0 {
		b.results.Store(w.networks[network].name, added{r.Out, runtimeConfig})
	}
	return r, nil
}

// note judges a verb that ended by itself: it succeeds, or says why not.
func (w *world) note(v lab.Verb, r *lab.Result) {
	msg, said := r.Error()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcome.Calls[v.Name]++
	if r.Exit != 0 {
		w.outcome.Failed[v.Name]++
		code, _, _ := strings.Cut(msg, ":")
		w.outcome.Errors[v.Name+" "+code]++
	}
	if w.measuring {
		w.outcome.Timings = append(w.outcome.Timings, timing{v.Name, r.Exit == 0, time.Since(w.began).Seconds(), r.Took.Seconds()})
	}
	if r.Exit != 0 && (!said || strings.Contains(msg, "internal error")) {
		w.outcome.Problems = append(w.outcome.Problems, fmt.Sprintf("%s of %s crashed: status %d: %s%s\nwith %s", v.Name, v.ContainerID, r.Exit, r.Out, r.Stderr, v.Config))
	}
}

func (w *world) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcome.Problems = append(w.outcome.Problems, fmt.Sprintf(format, args...))
	fmt.Fprintf(os.Stderr, "soak: "+format+"\n", args...)
}

func (w *world) add(r *rand.Rand) {
	b, n := w.any(r)
	_, _ = w.call(b, "ADD", n, w.networks[n].runtimeConfig(r), "") // a port may be taken, the attachment may be there
}

// del is DEL as runtimes call it: with everything, with nothing, or twice. While
// others are at work it may fail, but never without a reason.
func (w *world) del(r *rand.Rand) {
	b, n := w.any(r)
	if r.IntN(5) == 0 {
		b.results.Delete(w.networks[n].name)
	}
	for range 1 + r.IntN(2) {
		res, err := w.call(b, "DEL", n, "", "")
		if err == nil && res.Exit != 0 {
			msg, _ := res.Error()
			w.problem("DEL of %s in %s failed: %s%s", b.id, w.networks[n].name, msg, res.Stderr)
		}
	}
}

func (w *world) simple(r *rand.Rand, verb string) {
	b, n := w.any(r)
	_, _ = w.call(b, verb, n, "", "")
}

// collect is GC with some of the containers that are there; the veteran always is.
func (w *world) collect(r *rand.Rand) {
	b, n := w.any(r)
	valid := []string{fmt.Sprintf(`{"containerID":%q,"ifname":"eth%d"}`, w.veteran.id, n)}
	for _, b := range w.boxes {
		if r.IntN(3) > 0 {
			valid = append(valid, fmt.Sprintf(`{"containerID":%q,"ifname":"eth%d"}`, b.id, n))
		}
	}
	res, err := w.call(b, "GC", n, "", `"cni.dev/valid-attachments":[`+strings.Join(valid, ",")+`]`)
	if err == nil && res.Exit != 0 {
		msg, _ := res.Error()
		w.problem("GC of %s failed: %s%s", w.networks[n].name, msg, res.Stderr)
	}
}

// bad is an ADD that has to be refused, or another verb with any bytes.
func (w *world) bad(r *rand.Rand) {
	b, n := w.any(r)
	b.mu.RLock()
	defer b.mu.RUnlock()
	v := w.verb(b, "ADD", n, w.networks[n].runtimeConfig(r), "")
	refuse := r.IntN(2) == 0
	if refuse {
		v.Config = invalid[r.IntN(len(invalid))]
	} else {
		v.Name, v.Config = []string{"CHECK", "STATUS"}[r.IntN(2)], damaged(r, v.Config)
	}
	res, err := lab.Run(v.Command(), nil)
	if err != nil {
		w.problem("%s with %q: %v", v.Name, v.Config, err)
		return
	}
	if refuse && res.Exit == 0 {
		w.problem("ADD took %q", v.Config)
	}
	w.note(v, res)
}

// killVerb kills a verb at some moment.
func (w *world) killVerb(r *rand.Rand) {
	b, n := w.any(r)
	b.mu.RLock()
	defer b.mu.RUnlock()
	name := []string{"ADD", "ADD", "DEL", "CHECK"}[r.IntN(4)]
	v := w.verb(b, name, n, w.networks[n].runtimeConfig(r), "")
	moment := time.Duration(r.Float64() * 0.12 * float64(time.Second))
	signal := []unix.Signal{unix.SIGKILL, unix.SIGKILL, unix.SIGTERM}[r.IntN(3)]
	group := r.IntN(2) == 0
	_, err := lab.Run(v.Command(), func(pid int) {
		time.Sleep(moment) // the moment to be tested, not a wait
		if group {
			pid = -pid
		}
		_ = unix.Kill(pid, signal) // unless it has ended
	})
	if err != nil {
		w.problem("%s of %s, killed: %v", name, b.id, err)
	}
	b.results.Delete(w.networks[n].name) // nobody knows what it has done
	w.killed(name)
}

func (w *world) killed(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcome.Killed[what]++
}

// killDaemon kills a supervisor or a slirp4netns, but not the veteran's supervisor.
func (w *world) killDaemon(r *rand.Rand) {
	all := daemons()
	var pids []int
	for _, d := range all {
		if !w.veterans(d) {
			pids = append(pids, d.pid)
		}
	}
	if len(pids) == 0 {
		return
	}
	pid := pids[r.IntN(len(pids))]
	name := program(pid)
	if unix.Kill(pid, []unix.Signal{unix.SIGKILL, unix.SIGTERM}[r.IntN(2)]) == nil {
		w.killed(name)
	}
}

// exchange kills a container, with all that it has, and makes another of its name.
func (w *world) exchange(r *rand.Rand) {
	b := w.boxes[r.IntN(len(w.boxes))]
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := b.inner, b.inner.End()
	if err == nil {
		next, err = lab.NewContainer(b.id, w.rootless())
	}
	if err != nil {
		w.problem("%v", err)
		return
	}
	b.inner = next
	w.killed("container")
}

// sorted are the keys of counters.
func sorted(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }
