package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/hub"
)

// network is a network as the tree shows it: what holds it together, and who is in it. The
// containers of a private network have nothing in common but its name.
type network struct {
	name    string
	means   []string
	members []*attachment
	problem string
}

// networksOf groups attachments that are sorted by network, and adds the hubs that nobody
// is in.
func (a *app) networksOf(all []*attachment) ([]network, error) {
	var networks []network
	held := map[string]bool{}
	for _, t := range all {
		name, means := t.heldBy()
		id := t.Network + "\x00" + name
		if !held[id] {
			held[id] = true
			networks = append(networks, network{name: t.Network, means: means})
		}
		if t.record != nil {
			held[t.Network+"\x00"+t.record.Hub] = true
		}
		last := &networks[len(networks)-1]
		last.members = append(last.members, t)
	}
	stores, err := a.stores()
	if err != nil {
		return nil, err
	}
	for _, store := range stores {
		hubs, err := hub.List(store)
		if err != nil {
			return nil, hinted(err, stateDirHint)
		}
		for _, h := range hubs {
			if s := h.State(); s != nil && !held[s.Network+"\x00"+h.Name] {
				networks = append(networks, network{name: s.Network, means: []string{"hub " + h.Name}, problem: "nobody is in it; mend: " + a.command("gc "+quoted(s.Network))})
			}
		}
	}
	return networks, nil
}

// heldBy is what an attachment's network has in common: an identity, and words for people.
func (t *attachment) heldBy() (id string, means []string) {
	r := t.record
	switch {
	case r == nil:
		return "", nil
	case t.shared():
		means = []string{"hub " + r.Hub}
		if pid := t.network().Supervisor(); pid != 0 {
			means = append(means, fmt.Sprintf("supervisor %d", pid))
		}
		if t.status != nil {
			means = append(means, driverText(t))
		}
		return r.Hub, means
	case r.Mode == conf.ModeRootless:
		return "private", []string{"private"}
	case r.Bridge != "":
		means = []string{"bridge " + r.Bridge}
		if s := t.nameServer(); s != nil {
			means = append(means, fmt.Sprintf("name server %d", s.PID))
		}
		return r.Bridge, means
	}
	return strings.Join(delegatesOf(r), ", "), []string{strings.Join(delegatesOf(r), ", ")}
}

func driverText(t *attachment) string {
	name := t.status.Driver.Name
	if t.status.Driver.PID == 0 {
		return name + " down"
	}
	return fmt.Sprintf("%s %d", name, t.status.Driver.PID)
}

// printTree draws the networks as a tree.
func (a *app) printTree(networks []network) {
	for _, n := range networks {
		fmt.Fprintln(a.out, a.screen.paint(bold, printable(n.name))+"  "+printable(strings.Join(n.means, ", ")))
		if n.problem != "" {
			fmt.Fprintln(a.out, "└─ "+a.screen.paint(red, printable(n.problem)))
		}
		for i, t := range n.members {
			edge := "├─ "
			if i == len(n.members)-1 {
				edge = "└─ "
			}
			word, how := t.word()
			fmt.Fprintln(a.out, edge+printable(strings.Join(t.leaf(), "  "))+"  "+a.screen.paint(how, word))
		}
	}
}

// leaf is an attachment in words, without its state.
func (t *attachment) leaf() []string {
	words := []string{t.ContainerID + "/" + t.IfName}
	for _, ip := range t.addresses() {
		words = append(words, ip.String())
	}
	if ports := portsText(t.ports()); ports != "" {
		words = append(words, ports)
	}
	return words
}

// printMermaid draws the networks as a flow chart of Mermaid, for a document.
func printMermaid(out io.Writer, networks []network) {
	fmt.Fprintln(out, "flowchart LR")
	for i, n := range networks {
		words := append([]string{n.name}, n.means...)
		if n.problem != "" {
			words = append(words, n.problem)
		}
		fmt.Fprintf(out, "  n%d([%s])\n", i, mermaidText(words))
		for k, t := range n.members {
			word, _ := t.word()
			fmt.Fprintf(out, "  n%d --- n%dc%d[%s]\n", i, i, k, mermaidText(append(t.leaf(), word)))
		}
	}
}

// mermaidText is a text of several lines, with what means something to Mermaid written as
// an entity.
func mermaidText(lines []string) string {
	for i, l := range lines {
		lines[i] = strings.NewReplacer(`"`, "#quot;", "<", "&lt;", ">", "&gt;").Replace(printable(l))
	}
	return `"` + strings.Join(lines, "<br>") + `"`
}
