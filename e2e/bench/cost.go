package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// costPlan is what a run of the cost rows does.
type costPlan struct {
	times     int // that a comparison is made
	slow      int // the same, of the slow ones
	seed      int // containers of the full host, with portsEach ports each
	only      string
	before    string // binary of another ambi, in the world; empty: none
	out, data string

	haveBox     bool
	comparisons []*comparison
}

// comparison is two figures measured in turns.
type comparison struct {
	Key     string  `json:"key"`
	Title   string  `json:"title"`
	Subject string  `json:"subject"`
	Other   string  `json:"other"`
	Unit    string  `json:"unit"`
	Target  float64 `json:"targetRatio,omitempty"`
	Limit   float64 `json:"targetFigure,omitempty"`     // of the subject alone
	Margin  float64 `json:"targetDifference,omitempty"` // that the subject may be more than the other
	None    bool    `json:"targetNone,omitempty"`       // the target is 0
	Section string  `json:"section"`
	A       cell    `json:"subjectCell"`
	B       cell    `json:"otherCell"`
	Use     *use    `json:"use,omitempty"` // nil: not measured
}

// use is what the two sides need besides time.
type use struct {
	ProcessorA cell `json:"subjectProcessor"` // ms
	ProcessorB cell `json:"otherProcessor"`
	ProgramsA  int  `json:"subjectPrograms"`
	ProgramsB  int  `json:"otherPrograms"`
}

// The sections of the report; each is a table.
const (
	everyCall      = "Every call"
	withoutRoot    = "Without root"
	inHub          = "Without root, networks"
	onDeaths       = "When something is killed"
	builtInNetwork = "As root, the built-in network"
	asRoot         = "As root, by cnitool"
	onFullHost     = "As root, on a full host"
	onProcesses    = "As root, processes"
	byContainerd   = "As root, by containerd"
	byPodman       = "As root, by Podman"
)

func runCost(args []string) error {
	flags := flag.NewFlagSet("run-cost", flag.ExitOnError)
	p := &costPlan{}
	quick := flags.Bool("quick", false, "a few times only, to see that everything works")
	flags.IntVar(&p.times, "times", 20, "how often each comparison is made")
	flags.IntVar(&p.slow, "slow-times", 5, "the same for what takes seconds")
	flags.IntVar(&p.seed, "seed", 1000, "containers with 10 published ports each on the full host")
	before := flags.String("before", "", "`binary` of ambi to compare with where a part says so")
	flags.StringVar(&p.only, "only", "", "`part` to measure alone, such as \"command line\"")
	flags.StringVar(&p.out, "out", "docs/bench", "`folder` for cost.md and cost.svg; empty for none")
	flags.StringVar(&p.data, "data", "reports", "`folder` for cost.json, every single figure; empty for none")
	_ = flags.Parse(args)
	if *quick {
		p.times, p.slow, p.seed = 4, 1, 50
	}
	var err error
	if p.before, err = bringBefore(*before); err != nil {
		return err
	}
	return inWorld(p.run)
}

// beforeName is the other binary's.
const beforeName = "ambi-before"

// bringBefore puts another binary where the world has its tools, and returns its path there.
func bringBefore(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	if os.Getenv(worldVariable) == "" {
		program, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(".tools/bin/"+beforeName, program, 0o755)
		}
		if err != nil {
			return "", fmt.Errorf("the binary to compare with: %w", err)
		}
	}
	return stage + "/tools/" + beforeName, nil
}

func (p *costPlan) run() error {
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"start-up", p.startUp}, {"command line", p.commandLine}, {"rootless", p.rootless}, {"hub", p.hub}, {"keeper", p.keeperCost}, {"deaths", p.deaths}, {"built-in", p.builtIn}, {"delegation", p.delegation}, {"ports", p.ports},
		{"processes", p.processes}, {"full host", p.fullHost}, {"containerd", p.containerd}, {"podman", p.engine},
	} {
		if p.only != "" && part.name != p.only {
			continue
		}
		fmt.Fprintf(os.Stderr, "cost: %s\n", part.name)
		if err := part.run(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return p.publication().publish(p.out, p.data)
}

// compare enters a comparison into the report.
func (p *costPlan) compare(c comparison) *comparison {
	p.comparisons = append(p.comparisons, &c)
	return &c
}

// add enters one figure of each side.
func (c *comparison) add(a, b float64) {
	c.A.add(a, nil)
	c.B.add(b, nil)
}

func (c *comparison) ratio() float64 {
	if c.A.fails() || c.B.fails() || c.B.Median == 0 {
		return 0
	}
	return c.A.Median / c.B.Median
}

// milliseconds times what a command takes from its start to its end.
func milliseconds(cmd *exec.Cmd) (float64, error) {
	begin := time.Now()
	err := call(cmd)
	return float64(time.Since(begin).Nanoseconds()) / 1e6, err
}

// startUp is the least that a call of a plugin costs, and what containerd pays at each
// Status of the Container Runtime Interface, every few seconds.
func (p *costPlan) startUp() error {
	version := p.compare(comparison{Key: "version", Title: "VERSION: start-up", Section: everyCall, Subject: "ambi", Other: "bridge 1.9.1", Unit: "ms"})
	status := p.compare(comparison{Key: "status", Title: "STATUS: built-in network, as containerd asks every few seconds", Section: everyCall, Subject: "ambi", Other: "bridge 1.9.1", Unit: "ms", Limit: 3})
	const more = `,"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}`
	for range 3 * p.times {
		if err := inTurns(version, calling("VERSION", "/bin/ambi", ""), calling("VERSION", "/tools/bridge", "")); err != nil {
			return err
		}
		if err := inTurns(status, calling("STATUS", "/bin/ambi", ""), calling("STATUS", "/tools/bridge", more)); err != nil {
			return err
		}
	}
	return nil
}

// calling times one call of a plugin that needs no container. Its configuration is ready
// before it starts: to hand that over takes a good part of so short a time.
func calling(verb, plugin, members string) func() (float64, error) {
	return func() (float64, error) {
		stdin, config, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer stdin.Close()
		fmt.Fprintf(config, `{"cniVersion":"1.1.0","name":"web","type":%q%s}`, filepath.Base(plugin), members)
		config.Close()
		cmd := exec.Command(stage + plugin)
		cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_PATH=" + stage + "/tools"}
		cmd.Stdin = stdin
		return milliseconds(cmd)
	}
}

// inTurns measures both sides once.
func inTurns(c *comparison, a, b func() (float64, error)) error {
	left, err := a()
	if err != nil {
		return err
	}
	right, err := b()
	if err != nil {
		return err
	}
	c.add(left, right)
	return nil
}
