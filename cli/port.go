package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless"
)

func (a *app) portCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "port",
		Short: "list, publish and take back ports of a running container",
		Long: `List the published ports of a container, publish more of them while it runs, and
take them back.

A PORT is written [HOSTIP:]HOSTPORT[:CONTAINERPORT][/PROTOCOL], such as 8080:80,
127.0.0.1:8080:80/tcp or [::1]:5353:53/udp. Without an address it is every IPv4
and IPv6 address of the host, without a container's port the same number, without
a protocol tcp.`,
		Args: cobra.ArbitraryArgs,
		RunE: unknownCommand,
	}
	c.AddCommand(a.portListCommand(), a.portAddCommand(), a.portRemoveCommand())
	return c
}

func (a *app) portListCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list CONTAINER",
		Aliases:           []string{"ls"},
		Short:             "list the published ports of a container",
		Args:              arguments(1, 1, "CONTAINER"),
		ValidArgsFunction: a.completeOneContainer,
		RunE: func(c *cobra.Command, args []string) error {
			return a.portList(c.Context(), args[0])
		},
	}
}

func (a *app) portAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "add CONTAINER PORT…",
		Short: "publish ports of a running container (rootless)",
		Long: `Publish ports of a container that runs without root. The host's port is bound by
this command, so it takes the rights of who calls it, and handed to the
container's supervisor. DEL takes it back with the others.

A container that was attached as root gets its ports at ADD.`,
		Example:           "  ambi port add 3f2a 8080:80\n  ambi port add 3f2a 127.0.0.1:5353:53/udp 8443",
		Args:              arguments(2, 0, "CONTAINER or PORT"),
		ValidArgsFunction: a.completeOneContainer,
		RunE: func(c *cobra.Command, args []string) error {
			ports, err := parsePorts(c, args[1:])
			if err != nil {
				return err
			}
			for i := range ports {
				if ports[i].ContainerPort == 0 {
					ports[i].ContainerPort = ports[i].HostPort
				}
			}
			return a.changePorts(c.Context(), args[0], ports, published, (*rootless.Network).AddPort)
		},
	}
}

func (a *app) portRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm CONTAINER PORT…",
		Aliases: []string{"remove"},
		Short:   "take published ports of a running container back (rootless)",
		Long: `Take published ports of a container that runs without root back. TCP connections
that are there go on until one end closes them; UDP flows end.

Of a PORT only as much has to be given as tells which one is meant: 8080 will do.`,
		Example:           "  ambi port rm 3f2a 8080\n  ambi port rm 3f2a 127.0.0.1:5353/udp",
		Args:              arguments(2, 0, "CONTAINER or PORT"),
		ValidArgsFunction: a.completePorts,
		RunE: func(c *cobra.Command, args []string) error {
			wanted, err := parsePorts(c, args[1:])
			if err != nil {
				return err
			}
			return a.portRemove(c.Context(), args, wanted)
		},
	}
}

func parsePorts(c *cobra.Command, texts []string) ([]conf.PortMapping, error) {
	ports := make([]conf.PortMapping, len(texts))
	for i, text := range texts {
		var err error
		if ports[i], err = conf.ParsePort(text); err != nil {
			return nil, usageError(c, "%w", err)
		}
	}
	return ports, nil
}

// portsInfo is the JSON of port: the published ports of an attachment, after the
// command.
type portsInfo struct {
	conf.Key
	Ports []port `json:"ports"`
}

func (a *app) portList(ctx context.Context, id string) error {
	t, err := a.one(id)
	if err != nil {
		return err
	}
	t.look(ctx)
	ports := t.ports()
	if a.json {
		return printJSON(a.out, portsInfo{t.Key, jsonPorts(ports)})
	}
	if len(ports) == 0 {
		fmt.Fprintf(a.errOut, "%s has no published ports\n", t.Key)
		return nil
	}
	list := table{head: []string{"HOST", "CONTAINER", "PROTOCOL"}}
	for _, m := range ports {
		list.add(cells(m.HostAddr(), fmt.Sprint(m.ContainerPort), string(m.Protocol)))
	}
	list.print(a.out, a.screen)
	return nil
}

const published = "published"

// changePorts changes one port after the other and stops at the first that fails.
// The record says at any time what is published.
func (a *app) changePorts(ctx context.Context, id string, ports []conf.PortMapping, done string, change func(*rootless.Network, conf.PortMapping) error) error {
	t, unlock, err := a.lockRootless(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	n := t.network()
	for _, m := range ports {
		if err = change(n, m); err != nil {
			if slices.Contains(t.ports(), m) && done == published {
				err = hinted(err, fmt.Sprintf("%q lists what there is", t.app.command("port list "+t.ContainerID)))
			}
			break
		}
		if !a.json {
			fmt.Fprintf(a.out, "%s %s\n", done, m)
		}
	}
	if a.json {
		err = errors.Join(err, printJSON(a.out, portsInfo{t.Key, jsonPorts(n.Record.Ports)}))
	}
	return err
}

// lockRootless is the attachment that an argument stands for, which has to be a
// rootless one, locked.
func (a *app) lockRootless(ctx context.Context, id string) (*attachment, func(), error) {
	t, err := a.one(id)
	if err != nil {
		return nil, nil, err
	}
	if t.record == nil {
		return nil, nil, hinted(fmt.Errorf("record %s cannot be read", t.store.Path(t.Key, "json")), fmt.Sprintf("\"ambi inspect %s\" says what to do", t.ContainerID))
	}
	if !t.rootless() {
		return nil, nil, hinted(fmt.Errorf("%s was attached as root, and its ports do not change while it runs", t.Key),
			"give the port to ADD (runtimeConfig.portMappings, in most runtimes the option --publish)")
	}
	t.look(ctx)
	unlock, err := t.lock(ctx, a)
	return t, unlock, err
}

func (a *app) portRemove(ctx context.Context, args []string, wanted []conf.PortMapping) error {
	t, err := a.one(args[0])
	if err != nil {
		return err
	}
	t.look(ctx)
	ports := make([]conf.PortMapping, len(wanted))
	for i, w := range wanted {
		if ports[i], err = t.meant(w, args[1+i]); err != nil {
			return err
		}
	}
	return a.changePorts(ctx, args[0], ports, "took back", (*rootless.Network).RemovePort)
}

// meant is the one published port that fits what was given of it.
func (t *attachment) meant(w conf.PortMapping, text string) (conf.PortMapping, error) {
	var fit []conf.PortMapping
	for _, m := range t.ports() {
		if m.HostPort == w.HostPort && (m.Protocol == w.Protocol || !strings.Contains(text, "/")) &&
			(!w.HostIP.IsValid() || m.HostIP == w.HostIP) && (w.ContainerPort == 0 || m.ContainerPort == w.ContainerPort) {
			fit = append(fit, m)
		}
	}
	list := fmt.Sprintf("\"ambi port list %s\" lists them", t.ContainerID)
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return w, hinted(fmt.Errorf("%s has no published port %s", t.Key, text), list)
	}
	for _, m := range fit {
		if m == w { // given in full
			return m, nil
		}
	}
	return w, hinted(fmt.Errorf("%q may be any of %s", text, portList(jsonPorts(fit))), "give it in full; "+list)
}

// completePorts completes a container ID and then its ports.
func (a *app) completePorts(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeContainers(c, args, toComplete)
	}
	t, err := a.one(args[0])
	if err != nil || t.record == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var texts []string
	for _, m := range t.record.Ports {
		texts = append(texts, strings.TrimPrefix(fmt.Sprintf("%s:%d/%s", m.HostAddr(), m.ContainerPort, m.Protocol), "*:"))
	}
	return texts, cobra.ShellCompDirectiveNoFileComp
}
