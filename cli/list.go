package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
)

func (a *app) listCommand() *cobra.Command {
	var o listOptions
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "list the attachments, and whether they work",
		Long: `List the attachments of the user who calls it: one line for each interface that a
container has in a network.

The column STATE says "up" when everything is in place: the namespace, and
without root the supervisor and its driver, as root the firewall rules of the
published ports. Otherwise it says what is gone; "ambi inspect" says more.

With --tree each network is shown with what holds it together (the hub of a shared
network, a bridge, delegates) and its containers below it; with --mermaid as a flow
chart, for a document.`,
		Example: "  ambi list\n  ambi list --tree\n  ambi list --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.list(c.Context(), o)
		},
	}
	c.Flags().BoolVar(&o.tree, "tree", false, "draw the networks and their containers as a tree")
	c.Flags().BoolVar(&o.mermaid, "mermaid", false, "draw them as a flow chart of Mermaid")
	c.MarkFlagsMutuallyExclusive("tree", "mermaid")
	return c
}

type listOptions struct{ tree, mermaid bool }

// listed is one attachment in the JSON of list.
type listed struct {
	conf.Key
	Mode      conf.Mode    `json:"mode,omitempty"`
	State     state        `json:"state"`
	Problems  []problem    `json:"problems"`
	Addresses []netip.Addr `json:"addresses"`
	Ports     []port       `json:"ports"`
	Created   *time.Time   `json:"created,omitempty"`
}

func (a *app) list(ctx context.Context, o listOptions) error {
	all, err := a.attachments(nil)
	if err != nil {
		return err
	}
	done := a.progress("looking at %d attachments", len(all))
	lookAll(ctx, all, (*attachment).look)
	done()
	if a.json {
		return printJSON(a.out, listedAll(all))
	}
	if o.tree || o.mermaid {
		return a.draw(all, o)
	}
	if len(all) == 0 {
		fmt.Fprintf(a.errOut, "no attachments in %s\n", strings.Join(a.dirs(), ", "))
		return nil
	}
	t := table{
		head:   []string{"NETWORK", "CONTAINER", "IFNAME", "MODE", "ADDRESS", "PORTS", "STATE"},
		narrow: []limit{{1, 12}, {5, 16}, {0, 10}, {5, 9}, {4, 15}, {1, 8}, {0, 7}},
	}
	broken, dead := 0, 0
	for _, x := range all {
		t.add(a.row(x))
		if x.state == stateBroken {
			broken++
		}
		if x.dead() {
			dead++
		}
	}
	t.print(a.out, a.screen)
	if broken > 0 {
		fmt.Fprintf(a.errOut, "%s %s\n", a.messages.paint(bold, "hint:"), brokenHint(broken, dead))
	}
	return nil
}

func (a *app) draw(all []*attachment, o listOptions) error {
	networks, err := a.networksOf(all)
	if err != nil {
		return err
	}
	if o.mermaid {
		printMermaid(a.out, networks)
	} else {
		a.printTree(networks)
	}
	return nil
}

func brokenHint(broken, dead int) string {
	text := fmt.Sprintf("%d of these %s broken: \"ambi inspect CONTAINER\" says why", broken, isAre(broken))
	if dead > 0 {
		text += fmt.Sprintf("; \"ambi gc\" takes away the %d that can only be dead", dead)
	}
	return text
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func (a *app) row(t *attachment) []cell {
	word, how := t.word()
	if t.record == nil {
		return append(cells(t.Network, t.ContainerID, t.IfName, "", "", ""), cell{word, how})
	}
	address := ""
	if all := t.addresses(); len(all) > 0 {
		address = all[0].String()
	}
	return append(cells(t.Network, t.ContainerID, t.IfName, string(t.record.Mode), address,
		portsText(t.ports())), cell{word, how})
}

// portsText shows the ports as people write them, the first ones first.
func portsText(ports []conf.PortMapping) string {
	texts := make([]string, len(ports))
	for i, m := range ports {
		texts[i] = fmt.Sprintf("%s->%d/%s", strings.TrimPrefix(m.HostAddr(), "*:"), m.ContainerPort, m.Protocol)
	}
	return strings.Join(texts, ",")
}

func listedAll(all []*attachment) []listed {
	out := make([]listed, len(all))
	for i, t := range all {
		out[i] = listed{Key: t.Key, State: t.state, Problems: notNil(t.problems), Addresses: notNil(t.addresses()), Ports: jsonPorts(t.ports())}
		if t.record != nil {
			out[i].Mode, out[i].Created = t.record.Mode, &t.record.Created
		}
	}
	return out
}

// notNil has JSON show an empty array and not null.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// addresses are those of the container's interface, in the order of the result.
func (t *attachment) addresses() []netip.Addr {
	var out []netip.Addr
	for _, ip := range t.ips() {
		out = append(out, ip.prefix.Addr())
	}
	return out
}

// ports are those published now: what the supervisor says, else the record.
func (t *attachment) ports() []conf.PortMapping {
	switch {
	case t.status != nil:
		ports := make([]conf.PortMapping, len(t.status.Ports))
		for i, p := range t.status.Ports {
			ports[i] = p.Mapping
		}
		return ports
	case t.record != nil:
		return t.record.Ports
	}
	return nil
}

// port is a mapping in JSON, shaped as in runtimeConfig.portMappings.
type port struct {
	HostIP        string        `json:"hostIP"` // empty: every address
	HostPort      uint16        `json:"hostPort"`
	ContainerPort uint16        `json:"containerPort"`
	Protocol      conf.Protocol `json:"protocol"`
}

func jsonPort(m conf.PortMapping) port {
	p := port{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: m.Protocol}
	if m.HostIP.IsValid() {
		p.HostIP = m.HostIP.String()
	}
	return p
}

// mapping is the port as the rest of ambi knows it.
func (p port) mapping() conf.PortMapping {
	m := conf.PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol}
	m.HostIP, _ = netip.ParseAddr(p.HostIP) // empty: every address
	return m
}

func jsonPorts(ports []conf.PortMapping) []port {
	out := make([]port, len(ports))
	for i, m := range ports {
		out[i] = jsonPort(m)
	}
	return out
}
