package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/names"
	"github.com/ambi-cni/ambi/record"
)

func (a *app) namesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "names NETWORK [NAME]",
		Short: "list the names of a network, or resolve one as its containers do",
		Long: `List who has which name in a network with the key bridge.names.

With NAME, resolve it as a container of the network would. When it has no address the
exit status is 1, and what is known of the reason is told: the name is that of a
container in another network, of one whose ADD has not finished, or not the network's
at all, so that the name servers of the host are asked.`,
		Example:           "  ambi names web\n  ambi names web db",
		Args:              arguments(1, 2, "NETWORK"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.names(args)
		},
	}
}

// namesHint is for a network that has none.
const namesHint = `"bridge": {"names": true} in the network's configuration gives names to containers that are attached from then on`

// named is a container in the JSON of names.
type named struct {
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	Names       []string     `json:"names"`
	Addresses   []netip.Addr `json:"addresses"`
}

// resolved is the JSON of names with a name.
type resolved struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Own       bool         `json:"own"`     // of the network; else the host's name servers are asked
	Reasons   []string     `json:"reasons"` // why there is no address
}

func (a *app) names(args []string) error {
	stores, err := a.stores()
	if err != nil {
		return err
	}
	for _, store := range stores {
		records, _, err := store.List()
		if err != nil {
			return hinted(fmt.Errorf("listing the records in %s: %w", store.Dir(), err), stateDirHint)
		}
		members := slices.DeleteFunc(slices.Clone(records), func(r *record.Record) bool {
			return r.Network != args[0] || names.NetworkOf(r) == "" || r.State != record.Ready
		})
		switch {
		case len(members) == 0:
		case len(args) == 1:
			return a.listNames(store, members)
		default:
			return a.resolve(store, records, members[0], args[1])
		}
	}
	return hinted(fmt.Errorf("network %s has no container with names", args[0]), namesHint)
}

func (a *app) listNames(store *record.Store, members []*record.Record) error {
	t := table{head: []string{"CONTAINER", "IFNAME", "ADDRESS", "NAMES"}, narrow: []limit{{0, 12}, {3, 20}}}
	out := []named{}
	for _, r := range members {
		x := &attachment{Key: r.Key, app: a, store: store, record: r, result: resultOf(r)}
		n := named{r.ContainerID, r.IfName, notNil(namesOf(r)), notNil(x.addresses())}
		out = append(out, n)
		var addresses []string
		for _, address := range n.Addresses {
			addresses = append(addresses, address.String())
		}
		t.add(cells(n.ContainerID, n.IfName, strings.Join(addresses, ","), strings.Join(n.Names, ",")))
	}
	if a.json {
		return printJSON(a.out, out)
	}
	t.print(a.out, a.screen)
	a.warnOfServer(store, members[0])
	return nil
}

// namesOf are the names by which a record's container is found; none without a network
// that has them.
func namesOf(r *record.Record) []string {
	if names.NetworkOf(r) == "" {
		return nil
	}
	attachment, _ := r.Attachment()
	return names.Of(attachment)
}

// warnOfServer says so when nobody answers the containers.
func (a *app) warnOfServer(store *record.Store, r *record.Record) {
	if noServer(store, r) {
		fmt.Fprintf(a.errOut, "the name server of network %s has ended: no container is answered\n", r.Network)
		fmt.Fprintf(a.errOut, "%s %s starts it again, and so does the next ADD or DEL\n", a.messages.paint(bold, "hint:"), a.command("restore"))
	}
}

// noServer says that the network of a record should have a name server as root and has none.
func noServer(store *record.Store, r *record.Record) bool {
	place, ok := placeOf(store, r)
	return ok && place.Running() == nil
}

// placeOf is where the name server of a record's network is; false without one that is a
// process, which it is as root.
func placeOf(store *record.Store, r *record.Record) (names.Place, bool) {
	return names.Place{Store: store, Network: r.Network}, names.NetworkOf(r) != "" && r.Hub == ""
}

// nameServer is the running name server of the attachment's network as root; nil without one.
func (t *attachment) nameServer() *names.State {
	if place, ok := placeOf(t.store, t.record); ok {
		return place.Running()
	}
	return nil
}

func (a *app) resolve(store *record.Store, records []*record.Record, from *record.Record, name string) error {
	found, ok := names.Resolve(records, from, name)
	if !ok {
		return hinted(fmt.Errorf("network %s has no container with an address", from.Network), namesHint)
	}
	out := resolved{Name: name, Addresses: notNil(found.Addresses), Own: found.Own, Reasons: []string{}}
	if len(found.Addresses) == 0 {
		out.Reasons = append(out.Reasons, names.Why(records, from.Network, name)...)
		out.Reasons = append(out.Reasons, elsewhere(found))
	}
	if a.json {
		if err := printJSON(a.out, out); err != nil {
			return err
		}
	} else {
		for _, address := range out.Addresses {
			fmt.Fprintln(a.out, address)
		}
		for _, reason := range out.Reasons {
			fmt.Fprintf(a.errOut, "%s: %s\n", name, reason)
		}
	}
	a.warnOfServer(store, from)
	if len(out.Addresses) == 0 {
		return silentError{errors.New("no address")}
	}
	return nil
}

// elsewhere says what happens to a question that the network has no address for.
func elsewhere(f names.Found) string {
	switch {
	case f.Own:
		return "the network answers that there is no such name, or no address of it; nobody else is asked"
	case f.Nobody:
		return "it is not the network's, and nobody else is asked (rootless.disableDNS)"
	case len(f.Upstreams) > 0:
		return fmt.Sprintf("it is not the network's: the name servers of its configuration are asked (%v)", f.Upstreams)
	}
	return "it is not the network's: the name servers in " + names.ResolvConf + " are asked"
}
