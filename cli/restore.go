package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/root"
)

func (a *app) restoreCommand() *cobra.Command {
	watch := false
	c := &cobra.Command{
		Use:   "restore",
		Short: "publish again what a firewall reload flushed (root)",
		Long: `Put the published ports of every attachment, and the rules of built-in networks,
back into the firewall, from the records, after something such as a firewall reload
has flushed them; and start name servers of networks again that have ended. What is in place stays untouched. The rules of other CNI plugins
are theirs to put back.

With --firewalld it goes on, and does so again each time firewalld says over D-Bus that
it has loaded its rules anew. The unit ambi-firewalld.service runs that.

Without root nothing of ambi is in the firewall, and there is nothing to restore.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if !watch {
				return a.restore(c.Context())
			}
			return a.restoreAfterFirewalld(c.Context(), c.CommandPath())
		},
	}
	c.Flags().BoolVar(&watch, "firewalld", false, "go on: restore whenever firewalld has loaded its rules anew")
	return c
}

// restoreAfterFirewalld restores now and whenever firewalld has loaded its rules.
func (a *app) restoreAfterFirewalld(ctx context.Context, who string) error {
	err := root.WatchFirewalld(ctx, func() error {
		if err := a.restore(ctx); err != nil {
			a.complain(who, err) // the next time it may be possible
		}
		return nil
	})
	if err != nil {
		return hinted(err, "see that the system bus runs (systemctl status dbus); for another firewall than firewalld enable ambi-restore@NAME.service")
	}
	return nil
}

// restored is the JSON of restore.
type restored struct {
	Restored []restoredPorts `json:"restored"`
	Skipped  []skipped       `json:"skipped"`
	Backends []restoredCount `json:"backends"`
	Networks []string        `json:"networks"`
}

type restoredPorts struct {
	conf.Key
	Ports []port `json:"ports"`
}

// skipped is an attachment that is not restored, and why.
type skipped struct {
	conf.Key
	Reason string `json:"reason"`
}

// restoredCount is how many of the attachments of a backend lacked something.
type restoredCount struct {
	Backend     conf.Backend `json:"backend"`
	Attachments int          `json:"attachments"`
	Restored    int          `json:"restored"`
}

// restore puts the rules of built-in networks and the published ports of every
// attachment back into the firewall after something flushed it, from the records.
func (a *app) restore(ctx context.Context) error {
	done := a.progress("restoring published ports")
	defer done()
	j, err := a.openJournal(ctx)
	defer j.close()
	if err != nil {
		return err
	}
	out := &restored{Restored: []restoredPorts{}, Skipped: []skipped{}, Backends: []restoredCount{}, Networks: []string{}}
	networksErr := j.restoreNetworks(ctx, out)
	published, errs := j.published(out)
	errs = append(errs, networksErr)
	for _, backend := range []conf.Backend{conf.BackendNFTables, conf.BackendIPTables} {
		if all := published[backend]; len(all) > 0 {
			errs = append(errs, restoreWith(ctx, backend, all, out))
		}
	}
	errs = append(errs, a.report(out, len(published) == 0 && errors.Join(errs...) == nil))
	return errors.Join(errs...)
}

func (a *app) report(out *restored, nothing bool) error {
	if a.json {
		return printJSON(a.out, out)
	}
	for _, s := range out.Skipped {
		fmt.Fprintf(a.out, "skipped %s: %s\n", s.Key, s.Reason)
	}
	for _, name := range out.Networks {
		fmt.Fprintf(a.out, "network %s: its firewall rules are in place\n", name)
	}
	for _, r := range out.Restored {
		fmt.Fprintf(a.out, "restored %s: %s\n", r.Key, portList(r.Ports))
	}
	for _, b := range out.Backends {
		fmt.Fprintf(a.out, "%s: %d of %d attachments restored\n", b.Backend, b.Restored, b.Attachments)
	}
	if nothing {
		fmt.Fprintf(a.out, "no attachment has ports in the firewall, by the records in %s\n", strings.Join(a.dirs(), ", "))
	}
	return nil
}

// restoreWith puts back the ports of one backend, in one transaction.
func restoreWith(ctx context.Context, name conf.Backend, all []nat.Published, out *restored) error {
	const remedy = "run as root, in the network namespace that the containers were started from"
	backend, err := nat.Open(name)
	if err != nil {
		return hinted(err, remedy)
	}
	owners, err := backend.Restore(ctx, all)
	for _, p := range all {
		if slices.Contains(owners, p.Owner) {
			out.Restored = append(out.Restored, restoredPorts{p.Owner, jsonPorts(p.Ports)})
		}
	}
	out.Backends = append(out.Backends, restoredCount{name, len(all), len(owners)})
	if err != nil {
		return hinted(fmt.Errorf("%s: %w", name, err), "a port that somebody else has by now comes back when that is gone and ambi restore is run again; else "+remedy)
	}
	return nil
}

func portList(ports []port) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.mapping().String()
	}
	return strings.Join(texts, ", ")
}

// journal is the state folders that are there, with all verbs locked out.
type journal struct {
	stores  []*record.Store
	unlocks []func()
}

func (a *app) openJournal(ctx context.Context) (*journal, error) {
	j := &journal{}
	stores, err := a.stores()
	if err != nil {
		return j, err
	}
	for _, store := range stores {
		unlock, err := store.LockAll(ctx)
		if err != nil {
			return j, err
		}
		j.stores, j.unlocks = append(j.stores, store), append(j.unlocks, unlock)
	}
	return j, nil
}

func (j *journal) close() {
	for _, unlock := range j.unlocks {
		unlock()
	}
}

// restoreNetworks restores the built-in networks of all state folders.
func (j *journal) restoreNetworks(ctx context.Context, out *restored) error {
	var errs []error
	for _, store := range j.stores {
		records, _, err := store.List()
		if err != nil {
			continue // published tells
		}
		names, err := root.RestoreNetworks(ctx, slog.New(slog.DiscardHandler), store, records)
		out.Networks = append(out.Networks, names...)
		if err != nil {
			errs = append(errs, hinted(err, "run as root, in the network namespace that the containers were started from"))
		}
	}
	return errors.Join(errs...)
}

// published is what the records say should be published, by backend. What should
// not be any more is skipped.
func (j *journal) published(out *restored) (map[conf.Backend][]nat.Published, []error) {
	all := map[conf.Backend][]nat.Published{}
	var errs []error
	for _, store := range j.stores {
		records, damaged, err := store.List()
		if err != nil {
			errs = append(errs, err)
		}
		for _, key := range damaged {
			errs = append(errs, hinted(fmt.Errorf("record %s cannot be read", store.Path(key, "json")), "call DEL and ADD of "+key.String()))
		}
		for _, r := range wayOutFirst(records) {
			switch {
			case r.Published == nil:
			case r.State != record.Ready:
				out.Skipped = append(out.Skipped, skipped{r.Key, "its ADD did not finish; DEL or GC takes it away"})
			case r.Netns.Gone():
				out.Skipped = append(out.Skipped, skipped{r.Key, "its namespace is gone; DEL or GC takes it away"})
			default:
				all[r.Published.Backend] = append(all[r.Published.Backend], root.Published(r))
			}
		}
	}
	return all, errs
}

// wayOutFirst has, of the attachments of a container that publish the same ports, the
// one with the container's default route come first, as that is to have them.
func wayOutFirst(records []*record.Record) []*record.Record {
	attachments := map[string]int{}
	for _, r := range records {
		if r.Published != nil {
			attachments[r.ContainerID]++
		}
	}
	var later []*record.Record
	first := slices.DeleteFunc(slices.Clone(records), func(r *record.Record) bool {
		beside := attachments[r.ContainerID] > 1 && r.Netns.WayOut() != r.IfName
		if beside {
			later = append(later, r)
		}
		return beside
	})
	return append(first, later...)
}
