// Command inline calls plugins by libcni with a conflist that lies in no folder: as the
// NRI plugin of kubernetes-sigs/cni-dra-driver does, which has it from a ResourceClaim,
// and as the Firecracker SDK does, with a cache of its own for each machine.
//
//	inline add|check|del ID NETNS IFNAME CACHE   the conflist is on standard input
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: inline add|check|del ID NETNS IFNAME CACHE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[5], &libcni.RuntimeConf{ContainerID: os.Args[2], NetNS: os.Args[3], IfName: os.Args[4]}); err != nil {
		fmt.Fprintln(os.Stderr, "inline:", err)
		os.Exit(1)
	}
}

func run(verb, cache string, attachment *libcni.RuntimeConf) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	list, err := libcni.ConfListFromBytes(text)
	if err != nil {
		return err
	}
	library := libcni.NewCNIConfigWithCacheDir([]string{"/opt/cni/bin"}, cache, nil)
	ctx := context.Background()
	switch verb {
	case "add":
		result, err := library.AddNetworkList(ctx, list, attachment)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return library.CheckNetworkList(ctx, list, attachment)
	case "del":
		return library.DelNetworkList(ctx, list, attachment)
	}
	return fmt.Errorf("no such verb %q", verb)
}
