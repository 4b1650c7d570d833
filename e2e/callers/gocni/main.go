// Command gocni calls plugins by github.com/containerd/go-cni, the library of
// containerd and others, for many containers at once.
//
//	gocni setup NETNS…   attach each to all networks of /etc/cni/net.d; prints what
//	                     interface got which address
//	gocni check NETNS…
//	gocni remove NETNS…
//
// The containers are box1, box2, …; each publishes one port, 8001, 8002, …, to 80.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/go-cni"
)

const firstPort = 8001

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: gocni setup|check|remove NETNS…")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "gocni:", err)
		os.Exit(1)
	}
}

func run(verb string, namespaces []string) error {
	network, err := cni.New(cni.WithPluginDir([]string{"/opt/cni/bin", "/usr/lib/cni"}))
	if err != nil {
		return err
	}
	// Without WithLoNetwork, whose configuration is too old for CHECK.
	if err := network.Load(cni.WithAllConf); err != nil {
		return err
	}
	if err := network.Status(); err != nil {
		return err
	}
	errs := make([]error, len(namespaces))
	var all sync.WaitGroup
	for i, path := range namespaces {
		all.Go(func() {
			id := fmt.Sprintf("box%d", i+1)
			if err := call(network, verb, id, path, firstPort+int32(i)); err != nil {
				errs[i] = fmt.Errorf("%s %s: %w", verb, id, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func call(network cni.CNI, verb, id, path string, port int32) error {
	ctx := context.Background()
	ports := cni.WithCapabilityPortMap([]cni.PortMapping{{HostPort: port, ContainerPort: 80, Protocol: "tcp"}})
	switch verb {
	case "setup":
		result, err := network.Setup(ctx, id, path, ports)
		if err != nil {
			return err
		}
		fmt.Println(describe(id, result))
		return nil
	case "check":
		return network.Check(ctx, id, path, ports)
	case "remove":
		return network.Remove(ctx, id, path, ports)
	}
	return fmt.Errorf("no such verb")
}

func describe(id string, result *cni.Result) string {
	var names []string
	for name, i := range result.Interfaces {
		if i.Sandbox != "" && name != "lo" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	text := id
	for _, name := range names {
		for _, ip := range result.Interfaces[name].IPConfigs {
			text += fmt.Sprintf(" %s=%s", name, ip.IP)
		}
	}
	return text
}
