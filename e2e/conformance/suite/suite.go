package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Status is what became of a point.
type Status string

// What becomes of a point.
const (
	Passed        Status = "passed"
	Failed        Status = "failed"
	NotApplicable Status = "not applicable"
)

// Result is one point, tried.
type Result struct {
	Number   int      `json:"number"`
	Letter   string   `json:"letter"`
	Sentence string   `json:"sentence"`
	Basis    string   `json:"basis"`
	Status   Status   `json:"status"`
	Why      string   `json:"why,omitempty"` // of a failure, or why it does not apply
	Seen     []string `json:"seen,omitempty"`
	Seconds  float64  `json:"seconds"`
}

// Options say what is tried, and how.
type Options struct {
	Plugin   string   `json:"plugin"`   // the binary
	Conf     string   `json:"conf"`     // file with a configuration of one plugin, or a conflist
	Path     []string `json:"path"`     // where the other plugins are
	Rootless bool     `json:"rootless"` // the plugin runs as an unprivileged user
	Only     []string `json:"only"`     // letters, numbers and ranges of numbers; empty: all

	// DelegateKey is the key under which the plugin takes the configuration of what it
	// delegates to: an object or an array of objects. Empty: "ipam" when the
	// configuration has it, else the plugin delegates nothing.
	DelegateKey string `json:"delegateKey"`
	// ListKey is the key under which it takes the path of a conflist to delegate to.
	ListKey string `json:"listKey"`
	// DelegateTimeout is a member of its configuration, such as "timeout":"300ms", that
	// bounds the run of a delegate.
	DelegateTimeout string `json:"delegateTimeout"`
	// Needs are programs and files without which its ADD cannot work.
	Needs []string `json:"needs"`
	// Attachments is the number of ADDs side by side; zero is 50.
	Attachments int `json:"attachments"`

	Parallel int          `json:"-"` // points side by side; zero is four for each processor
	Progress func(Result) `json:"-"` // called for each point as it is done; may be nil
}

// job is what a worker is told: one point of a run.
type job struct {
	Options
	Self   string `json:"self"`
	Type   string `json:"type"`
	Text   []byte `json:"text"` // of the configuration
	Number int    `json:"number"`
}

const jobVariable = "CNI_CONFORMANCE_JOB"

// pointLimit is when a point is given up.
const pointLimit = 12 * time.Minute

// Run tries the points and returns their results, by number. An error means that
// nothing could be tried.
func Run(ctx context.Context, o Options) ([]Result, error) {
	template, err := prepare(&o)
	if err != nil {
		return nil, err
	}
	numbers, err := chosen(o.Only)
	if err != nil {
		return nil, err
	}
	results := make([]Result, len(numbers))
	var group sync.WaitGroup
	var reporting sync.Mutex
	slots := make(chan struct{}, max(o.Parallel, 1))
	for _, i := range startOrder(numbers) {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			j := *template
			j.Number = numbers[i]
			results[i] = inMachine(ctx, &j)
			if o.Progress != nil {
				reporting.Lock()
				defer reporting.Unlock()
				o.Progress(results[i])
			}
		})
	}
	group.Wait()
	return results, ctx.Err()
}

// startOrder has the long points begin first, so that none of them is alone at the
// end.
func startOrder(numbers []int) []int {
	order := make([]int, len(numbers))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return points[numbers[b]-1].Weight - points[numbers[a]-1].Weight })
	return order
}

func prepare(o *Options) (*job, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if o.Rootless && os.Geteuid() != 0 {
		return nil, errors.New("the rootless set-up needs root, to become an unprivileged user that is not yours")
	}
	if o.Parallel == 0 {
		// Most of a point's time is waiting for the kernel to make and unmake namespaces.
		o.Parallel = 4 * runtime.NumCPU()
	}
	if o.Attachments == 0 {
		o.Attachments = 50
	}
	if o.Plugin, err = filepath.Abs(o.Plugin); err != nil {
		return nil, err
	}
	for i, dir := range o.Path {
		if o.Path[i], err = filepath.Abs(dir); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(o.Conf)
	if err != nil {
		return nil, err
	}
	j := &job{Self: self, Type: filepath.Base(o.Plugin), Text: text}
	n, err := parseNetwork(text, j.Type)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Conf, err)
	}
	if _, is := n.subject["ipam"]; is && o.DelegateKey == "" {
		o.DelegateKey = ipamKey
	}
	j.Options = *o
	return j, nil
}

// chosen are the numbers of the points that are asked for.
func chosen(only []string) ([]int, error) {
	var numbers []int
	for _, p := range points {
		if len(only) == 0 {
			numbers = append(numbers, p.Number)
		}
	}
	for _, part := range only {
		from, to, isRange := strings.Cut(part, "-")
		first, err := number(from)
		last := first
		if err == nil && isRange {
			last, err = number(to)
		}
		known := false
		for _, p := range points {
			if (err == nil && first <= p.Number && p.Number <= last) || (err != nil && strings.EqualFold(part, p.Letter)) {
				numbers, known = append(numbers, p.Number), true
			}
		}
		if !known {
			return nil, fmt.Errorf("no point %q: give letters A to G, numbers 1 to %d, or ranges such as 31-40", part, len(points))
		}
	}
	slices.Sort(numbers)
	return slices.Compact(numbers), nil
}

// number is that of a point, with or without its letter before it.
func number(text string) (int, error) {
	return strconv.Atoi(strings.TrimLeft(strings.ToUpper(text), "ABCDEFG"))
}

// inMachine tries one point in a process of its own, in namespaces of its own.
func inMachine(ctx context.Context, j *job) Result {
	started := time.Now()
	p := points[j.Number-1]
	r := Result{Number: p.Number, Letter: p.Letter, Sentence: p.Sentence, Basis: p.Basis}
	ctx, cancel := context.WithTimeout(ctx, pointLimit)
	defer cancel()
	flags := []string{"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"}
	if os.Geteuid() != 0 {
		flags = append(flags, "--map-root-user")
	}
	// The first process is a shell, which reaps what loses its parent.
	cmd := exec.CommandContext(ctx, "unshare", append(flags, "sh", "-c", `"$0"; exit $?`, j.Self)...)
	text, err := json.Marshal(j)
	if err != nil {
		panic(err)
	}
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	cmd.WaitDelay = time.Minute
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var done Result
	if json.Unmarshal(stdout.Bytes(), &done) == nil && done.Status != "" {
		r.Status, r.Why, r.Seen = done.Status, done.Why, done.Seen
	} else {
		r.Status, r.Why = Failed, fmt.Sprintf("trouble of the suite, not of the plugin: no result (%v): %s", err, short(stderr.Bytes()))
	}
	r.Seconds = time.Since(started).Seconds()
	return r
}
