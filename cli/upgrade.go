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
and is served; connections through published ports have a second to come to their
end, and end then, as those that go out do. What goes from container to container does not notice.

A network that uses this program already is let be, and so is one in which
delegates are at work. As root nothing runs that could be replaced but name
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
	out, errs := []upgraded{}, []error{}
	for _, h := range hubs {
		network := h.State().Network
		before, after, err := replace(h, program)
		if err != nil {
			errs = append(errs, upgradeError(fmt.Errorf("network %s (hub %s): %w", network, h.Name, err)))
			continue
		}
		out = append(out, upgraded{network, h.Name, before, after})
	}
	return errors.Join(append(errs, a.reportUpgrade(out, len(hubs)))...)
}

func replace(h hub.Hub, program *os.File) (before, after int, err error) {
	if err := rootless.Stopped(h, "network "+h.State().Network); err != nil {
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

// hubs are those that live, of these networks or of all.
func (a *app) hubs(networks []string) (living []hub.Hub, err error) {
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
				living = append(living, h)
			}
		}
	}
	return living, nil
}

func (a *app) reportUpgrade(out []upgraded, running int) error {
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
	if running == 0 {
		fmt.Fprintf(a.out, "no network is running, by the folders %s\n", strings.Join(a.dirs(), ", "))
	}
	return nil
}
