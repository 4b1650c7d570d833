// Command nomad calls plugins by github.com/containerd/go-cni the way the Nomad client
// does for a group with the network mode "cni/NAME" (client/fingerprint/plugins_cni.go
// and client/allocrunner/networking_cni.go of Nomad 2.0).
//
//	nomad fingerprint PLUGIN             the version that Nomad gives the plugin
//	nomad add|check|del ID NETNS NAME…   the allocation ID, in the conflists of these names
//
// The allocation publishes its port 80 as 8080.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/containerd/go-cni"
	"github.com/hashicorp/go-version"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: nomad fingerprint PLUGIN | nomad add|check|del ID NETNS NAME…")
		os.Exit(2)
	}
	run := allocation
	if os.Args[1] == "fingerprint" {
		run = fingerprint
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nomad:", err)
		os.Exit(1)
	}
}

// fingerprint prints the first word that is a semantic version of what a plugin says
// that is run with nothing.
func fingerprint(args []string) error {
	said, err := exec.Command(args[1]).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w", args[1], err)
	}
	for word := range strings.FieldsSeq(string(said)) {
		if _, err := version.NewSemver(word); err == nil {
			fmt.Println(word)
			return nil
		}
	}
	return fmt.Errorf("no version in %q", said)
}

func allocation(args []string) error {
	if len(args) < 4 {
		return fmt.Errorf("bad command %q", args)
	}
	verb, id, netns := args[0], args[1], args[2]
	library, err := cni.New(cni.WithPluginDir([]string{"/opt/cni/bin"}), cni.WithInterfacePrefix("eth"))
	if err != nil {
		return err
	}
	var options []cni.Opt
	for _, name := range args[3:] {
		options = append(options, cni.WithConfListFile("/opt/cni/config/"+name+".conflist"))
	}
	if err := library.Load(options...); err != nil {
		return err
	}
	ctx := context.Background()
	ports := cni.WithCapabilityPortMap([]cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}})
	labels := cni.WithLabels(map[string]string{
		"IgnoreUnknown": "true", "NOMAD_REGION": "global", "NOMAD_NAMESPACE": "default", "NOMAD_JOB_ID": "web", "NOMAD_GROUP_NAME": "servers", "NOMAD_ALLOC_ID": id,
	})
	switch verb {
	case "add":
		result, err := library.Setup(ctx, id, netns, ports, labels)
		if err != nil {
			return err
		}
		return describe(result)
	case "check":
		return library.Check(ctx, id, netns, ports, labels)
	case "del":
		return library.Remove(ctx, id, netns, ports) // without labels
	}
	return fmt.Errorf("no such verb %q", verb)
}

// describe prints what Nomad makes the allocation's address: that of the first
// interface by name that is in a sandbox.
func describe(result *cni.Result) error {
	var names []string
	for name, i := range result.Interfaces {
		if i != nil && i.Sandbox != "" && len(i.IPConfigs) > 0 && name != "lo" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("no interface with an address in %+v", result)
	}
	slices.Sort(names)
	fmt.Println(names[0], result.Interfaces[names[0]].IPConfigs[0].IP)
	return nil
}
