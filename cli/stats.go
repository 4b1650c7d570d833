package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

func (a *app) statsCommand() *cobra.Command {
	o := statsOptions{}
	c := &cobra.Command{
		Use:   "stats [CONTAINER…]",
		Short: "show the traffic of interfaces and published ports",
		Long: `Show what the kernel counts of each container's interface since it was made, seen
from the container: RX is what it received. Without root the table of ports has
what rootlessport counts of each: connections or UDP flows, and bytes in (from
client to service) and out. That traffic does not cross the interface, so it comes
on top. The table of the way out has what leaves by the driver, and what comes back.

With --watch the numbers are rates: what came since the last look, per second.`,
		Example:           "  ambi stats\n  ambi stats 3f2a --watch\n  ambi stats --watch --interval 5s --count 12 --json",
		ValidArgsFunction: a.completeContainers,
		RunE: func(c *cobra.Command, args []string) error {
			if o.interval < 100*time.Millisecond {
				return usageError(c, "--interval is at least 100ms, not %s", o.interval)
			}
			return a.stats(c.Context(), args, o)
		},
	}
	c.Flags().BoolVarP(&o.watch, "watch", "w", false, "look again and again, and show rates, until interrupted")
	c.Flags().DurationVar(&o.interval, "interval", time.Second, "`time` between two looks of --watch")
	c.Flags().IntVar(&o.count, "count", 0, "`number` of looks of --watch; 0 is without end")
	return c
}

type statsOptions struct {
	watch    bool
	interval time.Duration
	count    int
}

// counted is one attachment in the JSON of stats. All counters only grow.
type counted struct {
	conf.Key
	Mode      conf.Mode                  `json:"mode"`
	Interface *supervisor.InterfaceStats `json:"interface"` // null when it cannot be seen
	Ports     []countedPort              `json:"ports"`     // null where nobody counts them
	// FlowsRefused are those that a container of a shared network could not begin, having as
	// many as it may.
	FlowsRefused uint64 `json:"flowsRefused"`
	// WayOut is null as root, and where nobody counts.
	WayOut  *supervisor.WayOut `json:"wayOut"`
	Problem string             `json:"problem,omitempty"`
	driver  string
}

type countedPort struct {
	port
	supervisor.PortCounters
}

// sample is one look at all.
type sample struct {
	Time        time.Time `json:"time"`
	Attachments []counted `json:"attachments"`
}

func (a *app) stats(ctx context.Context, args []string, o statsOptions) error {
	if !o.watch {
		s, err := a.sample(ctx, args)
		if err != nil {
			return err
		}
		if a.json {
			return printJSON(a.out, s)
		}
		a.showStats(s, nil)
		return nil
	}
	return a.watch(ctx, args, o)
}

// watch prints a sample for every interval; as JSON one document a line. To be
// interrupted is how it ends.
func (a *app) watch(ctx context.Context, args []string, o statsOptions) error {
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	var last *sample
	for n := 1; ; n++ {
		s, err := a.sample(ctx, args)
		if err != nil {
			return err
		}
		if a.json {
			if err := json.NewEncoder(programs(a.out)).Encode(s); err != nil {
				return err
			}
		} else {
			if a.screen.terminal {
				fmt.Fprint(programs(a.out), "\x1b[H\x1b[2J") // home, clear
			}
			a.showStats(s, last)
		}
		if n == o.count {
			return nil
		}
		last = s
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *app) sample(ctx context.Context, args []string) (*sample, error) {
	all, err := a.attachments(args)
	if err != nil {
		return nil, err
	}
	s := &sample{Time: time.Now().UTC()}
	all = selected(all, func(t *attachment) bool { return t.record != nil })
	s.Attachments = make([]counted, len(all))
	lookAll(ctx, all, func(t *attachment, _ context.Context) { s.Attachments[slices.Index(all, t)] = count(t) })
	return s, nil
}

// count reads the counters of one attachment.
func count(t *attachment) counted {
	c := counted{Key: t.Key, Mode: t.record.Mode}
	if !t.rootless() {
		link, err := linkOf(t)
		if err != nil {
			c.Problem = fmt.Sprintf("attachment %s: %v", t.Key, err)
			return c
		}
		c.Interface = supervisor.StatsOf(link)
		return c
	}
	status, err := t.network().Status()
	if err != nil {
		c.Problem = conf.Message(err)
		return c
	}
	c.driver = status.Driver.Name
	c.Interface, c.FlowsRefused, c.WayOut = status.Interface, status.FlowsRefused, status.WayOut
	if t.options().PortHandler == conf.HandlerRootlessport {
		c.Ports = countedPorts(status.Ports)
	}
	return c
}

// options are the keys of the network without root that it was attached with.
func (t *attachment) options() conf.Rootless {
	if a, err := t.record.Attachment(); err == nil {
		return a.NetConf.Rootless
	}
	return conf.Rootless{}
}

func countedPorts(stats []supervisor.PortStats) []countedPort {
	out := make([]countedPort, len(stats))
	for i, s := range stats {
		out[i] = countedPort{jsonPort(s.Mapping), s.PortCounters}
	}
	return out
}

// showStats prints totals, or rates when there is an earlier sample.
func (a *app) showStats(s, last *sample) {
	if len(s.Attachments) == 0 {
		fmt.Fprintf(a.errOut, "no attachments\n")
		return
	}
	links := table{
		head:  []string{"NETWORK", "CONTAINER", "IFNAME", "RX", "PACKETS", "TX", "PACKETS", "ERRORS", "DROPPED"},
		right: map[int]bool{3: true, 4: true, 5: true, 6: true, 7: true, 8: true}, narrow: []limit{{1, 12}, {0, 8}, {1, 6}},
	}
	ports := table{
		head:  []string{"CONTAINER", "PORT", "ACTIVE", "TOTAL", "IN", "OUT", "REFUSED", "DROPPED"},
		right: map[int]bool{2: true, 3: true, 4: true, 5: true, 6: true, 7: true}, narrow: []limit{{0, 12}, {1, 17}, {0, 6}},
	}
	out := table{
		head:  []string{"CONTAINER", "WAY OUT", "ACTIVE", "TOTAL", "OUT", "IN", "REFUSED", "DROPPED"},
		right: map[int]bool{2: true, 3: true, 4: true, 5: true, 6: true, 7: true}, narrow: []limit{{0, 12}},
	}
	for i := range s.Attachments {
		c := &s.Attachments[i]
		d := differenceTo(last, s, c)
		links.add(linkRow(c, d))
		if c.WayOut != nil {
			out.add(wayOutRow(c, d))
		}
		for _, p := range c.Ports {
			ports.add(portRow(c, &p, d))
		}
	}
	links.print(a.out, a.screen)
	for _, t := range []*table{&ports, &out} {
		if len(t.rows) > 0 {
			fmt.Fprintln(a.out)
			t.print(a.out, a.screen)
		}
	}
	for _, c := range s.Attachments {
		if c.FlowsRefused > 0 {
			fmt.Fprintf(a.out, "%s: %d new flows refused: it had as many as it may, or began too many at once\n", c.ContainerID, c.FlowsRefused)
		}
		for _, p := range c.Ports {
			if p.FlowsGaveWay > 0 {
				fmt.Fprintf(a.out, "%s: %s: %d flows gave way to others, as there are as many as there may be\n", c.ContainerID, p.mapping(), p.FlowsGaveWay)
			}
			if p.GaveWay > 0 {
				fmt.Fprintf(a.out, "%s: %s: %d connections gave way: there was room for no more, and others had less\n", c.ContainerID, p.mapping(), p.GaveWay)
			}
		}
		if c.Problem != "" {
			fmt.Fprintln(a.errOut, c.Problem)
		}
	}
}

// difference makes rates; its zero value leaves totals.
type difference struct {
	seconds float64
	before  *counted
}

func differenceTo(last, now *sample, c *counted) difference {
	if last == nil {
		return difference{}
	}
	for i := range last.Attachments {
		if b := &last.Attachments[i]; b.Key == c.Key && b.Interface != nil {
			return difference{now.Time.Sub(last.Time).Seconds(), b}
		}
	}
	return difference{}
}

// bytes is an amount, or a rate.
func (d difference) bytes(now, before uint64) string {
	if d.before == nil {
		return bytesText(now)
	}
	return bytesText(d.rate(now, before)) + "/s"
}

func (d difference) number(now, before uint64) string {
	if d.before == nil {
		return strconv.FormatUint(now, 10)
	}
	return strconv.FormatUint(d.rate(now, before), 10) + "/s"
}

func (d difference) rate(now, before uint64) uint64 {
	if now < before || d.seconds <= 0 {
		return 0 // counters of a new interface
	}
	return uint64(float64(now-before)/d.seconds + 0.5)
}

func linkRow(c *counted, d difference) []cell {
	row := cells(c.Network, c.ContainerID, c.IfName, "", "", "", "", "", "")
	n := c.Interface
	if n == nil {
		return row
	}
	b := &supervisor.InterfaceStats{}
	if d.before != nil {
		b = d.before.Interface
	}
	for i, text := range []string{
		d.bytes(n.RxBytes, b.RxBytes), d.number(n.RxPackets, b.RxPackets), d.bytes(n.TxBytes, b.TxBytes), d.number(n.TxPackets, b.TxPackets),
		strconv.FormatUint(n.RxErrors+n.TxErrors, 10), strconv.FormatUint(n.RxDropped+n.TxDropped, 10),
	} {
		row[3+i].text = text
	}
	return row
}

func wayOutRow(c *counted, d difference) []cell {
	w, b := c.WayOut, &supervisor.WayOut{}
	if d.before != nil && d.before.WayOut != nil {
		b = d.before.WayOut
	}
	active := ""
	if w.Active != nil {
		active = strconv.FormatInt(*w.Active, 10)
	}
	number := func(n *uint64) string {
		if n == nil {
			return ""
		}
		return strconv.FormatUint(*n, 10)
	}
	return cells(c.ContainerID, c.driver, active, number(w.Total), d.bytes(w.BytesOut, b.BytesOut), d.bytes(w.BytesIn, b.BytesIn), number(w.Refused), number(w.Dropped))
}

func portRow(c *counted, p *countedPort, d difference) []cell {
	b := &countedPort{}
	if d.before != nil {
		for i := range d.before.Ports {
			if d.before.Ports[i].port == p.port {
				b = &d.before.Ports[i]
			}
		}
	}
	return cells(c.ContainerID, p.mapping().String(), strconv.FormatInt(p.Active, 10), strconv.FormatUint(p.Total, 10),
		d.bytes(p.BytesIn, b.BytesIn), d.bytes(p.BytesOut, b.BytesOut),
		strconv.FormatUint(p.Refused, 10), strconv.FormatUint(p.Dropped, 10))
}
