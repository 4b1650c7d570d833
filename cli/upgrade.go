package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

func (a *app) upgradeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade [NETWORK…]",
		Short: "have running networks use this program (without root)",
		Long: `Replace the supervisor and the keeper of networks without root, which run the
program that started them, by this one: after an update of ambi. It goes network
by network. Who connects to a published port, or asks for a name, meanwhile waits
and is served; connections that there are have 30 seconds to come to their end, and
end then. Those that go out by slirp4netns go on, and those by pasta end at once. What
goes from container to container does not notice.

A network that uses this program already is let be, and so is one in which
delegates are at work; one that is named and does not run is an error. As root nothing runs that could be replaced but name
servers, which "ambi restore" starts after they have ended.`,
		Example: "  ambi upgrade\n  ambi upgrade web --json",
		RunE:    func(_ *cobra.Command, args []string) error { return a.upgrade(args) },
	}
}

// upgraded is the JSON of upgrade.
type upgraded struct {
	Network string `json:"network"`
	Hub     string `json:"hub"`
	Before  int    `json:"before"` // its supervisor
	After   int    `json:"after"`  // the same where it uses this program already
}

func (a *app) upgrade(networks []string) error {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("opening this program: %w", err)
	}
	defer program.Close()
	hubs, err := a.hubs(networks)
	if err != nil {
		return err
	}
	out, errs := []upgraded{}, notRunning(networks, hubs)
	for _, h := range hubs {
		before, after, err := h.replace(program)
		if err != nil {
			errs = append(errs, upgradeError(fmt.Errorf("network %s (hub %s): %w", h.network, h.Name, err)))
			continue
		}
		out = append(out, upgraded{h.network, h.Name, before, after})
	}
	return errors.Join(append(errs, a.reportUpgrade(out, len(networks) == 0 && len(hubs) == 0))...)
}

// notRunning are errors of the networks that none of these hubs is of.
func notRunning(networks []string, hubs []runningHub) (errs []error) {
	for _, network := range networks {
		if !slices.ContainsFunc(hubs, func(h runningHub) bool { return h.network == network }) {
			errs = append(errs, hinted(fmt.Errorf("network %q is not running without root", network), "\"ambi list\" has those that are; "+stateDirHint))
		}
	}
	return errs
}

func (h runningHub) replace(program *os.File) (before, after int, err error) {
	if err := rootless.Stopped(h.Hub, "network "+h.network); err != nil {
		return 0, 0, err
	}
	return supervisor.Control(h.Path("sock")).Replace(program)
}

func upgradeError(err error) error {
	if strings.Contains(conf.Message(err), `"replace" is not known`) {
		return hinted(err, "one of before ambi had keepers cannot be replaced: its containers have to be started again")
	}
	return err
}

// runningHub is one that lived when it was looked for. Its network may have ended since.
type runningHub struct {
	hub.Hub
	network string
}

// hubs are those that live, of these networks or of all.
func (a *app) hubs(networks []string) (living []runningHub, err error) {
	stores, err := a.stores()
	if err != nil {
		return nil, err
	}
	for _, store := range stores {
		all, err := hub.List(store)
		if err != nil {
			return nil, hinted(err, stateDirHint)
		}
		for _, h := range all {
			s := h.State()
			if s != nil && h.Lives() && (len(networks) == 0 || slices.Contains(networks, s.Network)) {
				living = append(living, runningHub{h, s.Network})
			}
		}
	}
	return living, nil
}

func (a *app) reportUpgrade(out []upgraded, none bool) error {
	if a.json {
		return printJSON(a.out, out)
	}
	for _, u := range out {
		if u.Before == u.After {
			fmt.Fprintf(a.out, "network %s uses this program already (supervisor %d)\n", u.Network, u.After)
			continue
		}
		fmt.Fprintf(a.out, "network %s: supervisor %d in place of %d\n", u.Network, u.After, u.Before)
	}
	if none {
		fmt.Fprintf(a.out, "no network is running, by the folders %s\n", strings.Join(a.dirs(), ", "))
	}
	return nil
}
