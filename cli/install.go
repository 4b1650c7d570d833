package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/install"
	"github.com/ambi-cni/ambi/record"
)

type installOptions struct {
	conflist, podCIDR, podCIDRFile string
	chain, watch                   bool
}

func (a *app) installCommand() *cobra.Command {
	n, o := a.node(), installOptions{}
	c := &cobra.Command{
		Use:   "install",
		Short: "put ambi among the plugins of this host, and a conflist",
		Long: `Put ambi where the runtimes of this host look for plugins, and with --conflist or
--chain what has them call it. Whatever happens meanwhile, the host has the old or the
new program and the old or the new conflist, each whole. What is as it shall be is not
touched.

With --conflist the network of that file becomes one of the host, under the file's own
name; runtimes take the first of the folder. With --chain ambi is added to the
conflist that the host has, to publish the ports in the place of the plugin portmap.

With --watch it goes on until it is ended: what somebody takes away is put back, and
ambi is added again when another plugin's installer has replaced its conflist. Nothing is
taken away at the end; "ambi uninstall" does that.`,
		Example: `  ambi install
  ambi install --conflist examples/10-ambi.conflist
  ambi install --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d --chain --watch`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			switch cidr := o.podCIDR != "" || o.podCIDRFile != ""; {
			case o.conflist != "" && o.chain:
				return usageError(c, "--conflist and --chain exclude each other")
			case o.podCIDR != "" && o.podCIDRFile != "":
				return usageError(c, "--pod-cidr and --pod-cidr-file exclude each other")
			case cidr && o.conflist == "":
				return usageError(c, "a pod CIDR is for the network of --conflist")
			}
			return a.install(c.Context(), n, o)
		},
	}
	nodeFlags(c, n)
	c.Flags().StringVar(&o.conflist, "conflist", "", "a `file` that becomes a conflist of the host, under the same name")
	c.Flags().BoolVar(&o.chain, "chain", false, "add ambi, for the ports, to the conflist that the host has")
	c.Flags().StringVar(&o.podCIDR, "pod-cidr", "", "`subnets` of the network of --conflist, one or one of each family")
	c.Flags().StringVar(&o.podCIDRFile, "pod-cidr-file", "", "a `file` that has them")
	c.Flags().BoolVar(&o.watch, "watch", false, "go on, and put back what others take away")
	return c
}

func (a *app) uninstallCommand() *cobra.Command {
	n := a.node()
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "take away what \"ambi install\" has put there",
		Long: `Take away what "ambi install" has put on this host, and nothing else: its conflists,
its entries in those of others, whose plugin portmap is back then, and the program.

While there are attachments it takes nothing away: runtimes need the conflist and the
program to take them down. Remove the containers first ("kubectl drain").`,
		Example: `  ambi uninstall
  ambi uninstall --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return a.uninstall(c.Context(), n) },
	}
	nodeFlags(c, n)
	return c
}

func (a *app) node() *install.Node {
	return &install.Node{Tell: func(format string, args ...any) { fmt.Fprintf(a.errOut, format+"\n", args...) }}
}

func nodeFlags(c *cobra.Command, n *install.Node) {
	c.Flags().StringVar(&n.BinDir, "bin-dir", "/opt/cni/bin", "`folder` where the host's runtimes look for plugins")
	c.Flags().StringVar(&n.ConfDir, "conf-dir", "/etc/cni/net.d", "`folder` where they look for conflists")
	_ = c.MarkFlagDirname("bin-dir")
	_ = c.MarkFlagDirname("conf-dir")
}

func (a *app) install(ctx context.Context, n *install.Node, o installOptions) error {
	const self = "/proc/self/exe" // also when it is taken away from its own folder
	program, last := false, ""    // what is done: the program, and a conflist of this text
	once := func(ctx context.Context) error {
		text, err := o.text()
		if err != nil {
			return err
		}
		// Another version of either is not ours to fight over; the first time it is what we
		// were called for.
		return n.Binary(ctx, self, !program, func() error {
			program = true
			switch {
			case o.chain:
				return n.Chain(ctx)
			case o.conflist == "", last == string(text) && !missing(filepath.Join(n.ConfDir, filepath.Base(o.conflist))):
				return nil
			}
			if err := n.Conflist(ctx, filepath.Base(o.conflist), text); err != nil {
				return err
			}
			last = string(text)
			return nil
		})
	}
	if !o.watch {
		return once(ctx)
	}
	return n.Watch(ctx, once)
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// text is the conflist of the options, with the pod CIDR; empty without one.
func (o installOptions) text() ([]byte, error) {
	if o.conflist == "" {
		return nil, nil
	}
	text, err := os.ReadFile(o.conflist)
	if err != nil {
		return nil, hinted(fmt.Errorf("reading the conflist: %w", err), "give a conflist that has ambi in it; docs/kubernetes.md has some")
	}
	cidr := o.podCIDR
	if o.podCIDRFile != "" {
		raw, err := os.ReadFile(o.podCIDRFile)
		if err != nil {
			return nil, hinted(fmt.Errorf("reading the node's pod CIDR: %w", err), "have what knows the node's spec.podCIDRs write it there, or give it with --pod-cidr")
		}
		cidr = string(raw)
	}
	if cidr == "" && o.podCIDRFile == "" {
		return text, nil
	}
	cidrs, err := install.ParsePodCIDR(cidr)
	if err != nil {
		return nil, err
	}
	return install.WithPodCIDR(filepath.Base(o.conflist), text, cidrs)
}

func (a *app) uninstall(ctx context.Context, n *install.Node) error {
	attachments, err := a.attachments(nil)
	if err != nil {
		return err
	}
	needed, counted := len(attachments), a.dirs()
	for _, dir := range n.StateDirs() {
		if slices.ContainsFunc(counted, func(other string) bool { return sameFile(dir, other) }) {
			continue
		}
		counted = append(counted, dir)
		store, err := record.OpenExisting(dir)
		if err != nil {
			continue // no container has been there, or a pod does not see it
		}
		records, damaged, err := store.List()
		if err != nil {
			return hinted(fmt.Errorf("listing the records in %s: %w", dir, err), stateDirHint)
		}
		needed += len(records) + len(damaged)
	}
	if needed > 0 {
		return hinted(fmt.Errorf("nothing is taken away: %d attachments need ambi to be taken down", needed), "remove the containers of \"ambi list\", then call it again; \"ambi gc\" takes away dead ones")
	}
	return n.Remove(ctx)
}
