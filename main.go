// A verb lives for milliseconds and a supervisor waits: reading the cgroup's CPU
// limit at every start, and watching it, costs each more than it brings.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command ambi is a CNI plugin that gives a container its network whoever starts
// it: as root it runs the CNI plugins of the host and publishes ports itself;
// without root it puts a driver behind the interface, which carries what goes out, and
// forwards ports in user space.
package main

import (
	_ "embed" // for VERSION
	"os"
	"strings"

	"github.com/ambi-cni/ambi/names"
	"github.com/ambi-cni/ambi/plugin"
	"github.com/ambi-cni/ambi/rootless/keeper"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// version is set by the build (-ldflags -X main.version=…), see hack/version.
var version string

// number is the release that a build without it comes from, or comes before.
//
//go:embed VERSION
var number string

func main() { os.Exit(run()) }

// run finds out which face ambi has to show: a CNI verb, a supervisor, a name server, or
// a command line.
func run() int {
	switch {
	case os.Getenv("CNI_COMMAND") != "":
		return plugin.Main(about())
	case len(os.Args) > 1 && os.Args[1] == supervisor.Role:
		return supervisor.Main()
	case len(os.Args) > 1 && os.Args[1] == keeper.Role:
		return keeper.Main()
	case len(os.Args) > 1 && os.Args[1] == names.Role:
		return names.Main(os.Args[2:])
	case len(os.Args) > 1:
		return commandLine(os.Args[1:])
	}
	return plugin.Main(about()) // tells about itself
}

// about is what the plugin says of itself without CNI_COMMAND. Nomad takes the first
// word that is a semantic version for the plugin's.
func about() string { return "CNI plugin ambi " + buildVersion() }

func buildVersion() string {
	if version != "" {
		return version
	}
	return strings.TrimSpace(number)
}
