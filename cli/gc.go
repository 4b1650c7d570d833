package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/rootless/hub"
)

func (a *app) gcCommand() *cobra.Command {
	ports := false
	c := &cobra.Command{
		Use:   "gc [NETWORK…]",
		Short: "take away attachments that can only be dead",
		Long: `Take away what can only be dead, in the networks that are named or in all: an
attachment whose namespace or supervisor (with its keeper) is gone, an ADD that was killed before it
was done. It is the CNI verb GC without a list of what is valid, so nothing is
taken that still works.

A record that cannot be read is left alone: "ambi inspect" has the command for
it. With --ports the firewall is rid of published ports that no record explains;
leave that out while networks have state folders (key stateDir) elsewhere.`,
		Example: "  ambi gc\n  ambi gc web --json",
		RunE: func(c *cobra.Command, args []string) error {
			return a.gc(c.Context(), args, ports)
		},
	}
	c.Flags().BoolVar(&ports, "ports", false, "also take published ports that no record explains (root)")
	return c
}

// collected is the JSON of gc.
type collected struct {
	Collected []conf.Key `json:"collected"`
	Ports     []conf.Key `json:"ports"`     // whose published ports without a record went
	Remaining []problems `json:"remaining"` // that are broken and not for gc to take
}

type problems struct {
	conf.Key
	Problems []problem `json:"problems"`
}

func (a *app) gc(ctx context.Context, networks []string, ports bool) error {
	before, err := a.attachments(nil)
	if err != nil {
		return err
	}
	if len(networks) == 0 {
		if networks, err = a.networks(); err != nil {
			return err
		}
	}
	out := &collected{Collected: []conf.Key{}, Ports: []conf.Key{}, Remaining: []problems{}}
	var errs []error
	for _, network := range networks {
		errs = append(errs, a.gcNetwork(ctx, network))
	}
	after, err := a.attachments(nil)
	errs = append(errs, err)
	for _, t := range before {
		if slices.Contains(networks, t.Network) && !slices.ContainsFunc(after, func(x *attachment) bool { return x.Key == t.Key }) {
			out.Collected = append(out.Collected, t.Key)
		}
	}
	lookAll(ctx, after, (*attachment).look)
	for _, t := range after {
		if t.state == stateBroken && slices.Contains(networks, t.Network) {
			out.Remaining = append(out.Remaining, problems{t.Key, t.problems})
		}
	}
	if ports {
		errs = append(errs, a.gcPorts(ctx, out))
	}
	errs = append(errs, a.reportGC(out))
	return errors.Join(errs...)
}

// networks are those that have any file in the state folders.
func (a *app) networks() ([]string, error) {
	stores, err := a.stores()
	if err != nil {
		return nil, err
	}
	var networks []string
	for _, store := range stores {
		more, err := store.Networks()
		if err != nil {
			return nil, hinted(fmt.Errorf("listing state folder %s: %w", store.Dir(), err), stateDirHint)
		}
		networks = append(networks, more...)
		hubs, err := hub.List(store)
		if err != nil {
			return nil, hinted(err, stateDirHint)
		}
		for _, h := range hubs {
			if s := h.State(); s != nil {
				networks = append(networks, s.Network)
			}
		}
	}
	slices.Sort(networks)
	return slices.Compact(networks), nil
}

func (a *app) gcNetwork(ctx context.Context, network string) error {
	defer a.progress("collecting network %s", network)()
	err := callVerb(ctx, "GC", map[string]any{
		"cniVersion": "1.1.0", "name": network, "type": "ambi", "stateDir": a.stateDir,
		// Ports without a record may belong to a network with another state folder.
		"portmap": map[string]any{"backend": conf.BackendNone},
		// An empty bridge may be one that its configuration, which is not known here, keeps.
		"bridge": map[string]any{"keep": true},
	})
	if err != nil {
		return hinted(fmt.Errorf("network %s: %w", network, err), "mend what the error names, and run ambi gc again")
	}
	return nil
}

// orphans are the owners of published ports that have no record, by backend.
func (a *app) orphans(ctx context.Context) (map[conf.Backend][]conf.Key, error) {
	all, err := a.attachments(nil)
	if err != nil {
		return nil, err
	}
	found := map[conf.Backend][]conf.Key{}
	for _, name := range []conf.Backend{conf.BackendNFTables, conf.BackendIPTables} {
		backend, err := nat.Open(name)
		if err != nil {
			continue // then it has no ports either
		}
		owners, err := backend.Owners(ctx, "")
		if err != nil {
			return nil, fmt.Errorf("listing the owners of published ports (%s): %w", name, err)
		}
		for _, owner := range owners {
			if !slices.ContainsFunc(all, func(t *attachment) bool { return t.Key == owner }) {
				found[name] = append(found[name], owner)
			}
		}
	}
	return found, nil
}

func (a *app) gcPorts(ctx context.Context, out *collected) error {
	if mode, why, _ := a.program.Mode(conf.ModeAuto); mode != conf.ModeRoot {
		return hinted(fmt.Errorf("--ports: the firewall is not ours to change: %s", why), "run as root")
	}
	j, err := a.openJournal(ctx) // no ADD is between its record and its ports
	defer j.close()
	if err != nil {
		return err
	}
	orphans, err := a.orphans(ctx)
	errs := []error{err}
	for name, owners := range orphans {
		backend, err := nat.Open(name)
		if err != nil {
			return err
		}
		for _, owner := range owners {
			if err := backend.Del(ctx, nat.Published{Owner: owner}); err != nil {
				errs = append(errs, fmt.Errorf("ports of %s: %w", owner, err))
				continue
			}
			out.Ports = append(out.Ports, owner)
		}
	}
	return errors.Join(errs...)
}

func (a *app) reportGC(out *collected) error {
	if a.json {
		return printJSON(a.out, out)
	}
	for _, key := range out.Collected {
		fmt.Fprintf(a.out, "collected %s\n", key)
	}
	for _, key := range out.Ports {
		fmt.Fprintf(a.out, "took back the ports of %s\n", key)
	}
	for _, p := range out.Remaining {
		fmt.Fprintln(a.out, a.screen.wrapped(fmt.Sprintf("left %s: %s", p.Key, p.Problems[0].Text), 0))
		if p.Problems[0].Remedy != "" {
			fmt.Fprintf(a.out, "  mend: %s\n", p.Problems[0].Remedy)
		}
	}
	if len(out.Collected)+len(out.Ports)+len(out.Remaining) == 0 {
		fmt.Fprintf(a.out, "nothing to collect in %s\n", strings.Join(a.dirs(), ", "))
	}
	return nil
}
