package cli

import (
	"fmt"
	"runtime"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version of ambi and those of CNI it speaks",
		Args:  noArguments,
		RunE: func(*cobra.Command, []string) error {
			return a.version()
		},
	}
}

// versionInfo is the JSON of version.
type versionInfo struct {
	Version     string   `json:"version"`
	Go          string   `json:"go"`
	Platform    string   `json:"platform"`
	CNIVersions []string `json:"cniVersions"`
}

func (a *app) version() error {
	v := versionInfo{a.program.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, version.All.SupportedVersions()}
	if a.json {
		return printJSON(a.out, v)
	}
	fmt.Fprintf(a.out, "ambi %s (%s, %s), CNI %s to %s\n", v.Version, v.Go, v.Platform, v.CNIVersions[0], v.CNIVersions[len(v.CNIVersions)-1])
	return nil
}
