package rootless

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// DriverInfo is the slirp4netns that a rootless ADD would use.
type DriverInfo struct {
	Path    string
	Version string   // what --version says first; empty when it says nothing
	Lacks   []string // options that ambi would use and it does not have
}

// LookAtDriver finds slirp4netns and asks it for its options. It changes nothing. The
// path of a binary that is there and cannot be used comes with the error.
func LookAtDriver(configured string) (*DriverInfo, error) {
	path, err := lookUp(configured)
	if err != nil {
		return &DriverInfo{}, err
	}
	d := &driver{Path: path}
	if err := d.probe(); err != nil {
		return &DriverInfo{Path: path}, err
	}
	info := &DriverInfo{Path: path}
	for _, f := range features {
		if !d.Features[f] && !slices.Contains(unused, f) {
			info.Lacks = append(info.Lacks, f)
		}
	}
	if out, err := askProgram(path, "--version"); err == nil {
		first, _, _ := strings.Cut(out, "\n")
		info.Version = strings.TrimSpace(strings.TrimPrefix(first, "slirp4netns version "))
	}
	return info, nil
}

// unused are features that are looked for and not used.
var unused = []string{"macaddress", "userns-path"}

// LookAtTun says whether the driver could open /dev/net/tun.
func LookAtTun() error { return checkTun() }

// LookUpNsenter finds nsenter(1), which enters user namespaces of containers.
func LookUpNsenter() (string, error) { return lookUpNsenter() }

// MendedBy splits the remedy off an error of this room: its messages end in what to
// do about it.
func MendedBy(err error) (what, remedy string) {
	var e *types.Error
	text := fmt.Sprint(err)
	if errors.As(err, &e) {
		text = e.Msg
	}
	what, remedy, _ = strings.Cut(text, "; ")
	return what, remedy
}
