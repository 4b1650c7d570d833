package plugin

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// rights are what the choice of mode rests on. Not the uid: uid 0 of a user
// namespace may be powerless over the network namespace it stands in, and an
// ordinary user may own one.
type rights struct {
	netAdmin  bool // effective CAP_NET_ADMIN
	ownsNetns bool // our user namespace owns our network namespace
}

// ModeHere is the mode that a network with this value of the key mode would get
// from this process, and why.
func ModeHere(asked conf.Mode) (mode conf.Mode, why string, err error) {
	r := ownRights()
	mode, err = chooseMode(asked, r)
	return mode, reasonFor(asked, r), err
}

func reasonFor(asked conf.Mode, r rights) string {
	switch {
	case asked == conf.ModeRootless:
		return "the key mode says so"
	case r.netAdmin && r.ownsNetns:
		return "this process has CAP_NET_ADMIN, and its user namespace owns its network namespace"
	case !r.netAdmin:
		return "this process has no CAP_NET_ADMIN"
	}
	return "this process's user namespace does not own its network namespace (" + netnsName() + "), so nothing can be set up in it"
}

func ownRights() rights {
	return rights{netAdmin: record.HaveCapability(unix.CAP_NET_ADMIN), ownsNetns: ownNetnsIsOurs()}
}

// ownNetnsIsOurs compares the owner of our network namespace with our user
// namespace (ioctl_nsfs(2), NS_GET_USERNS). The ioctl fails with EPERM when the
// owner is outside ours: the host's network seen by a fake root.
func ownNetnsIsOurs() bool {
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return false
	}
	defer netns.Close()
	fd, err := unix.IoctlRetInt(int(netns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	owner := os.NewFile(uintptr(fd), "owning user namespace")
	defer owner.Close()
	ownerStat, err := owner.Stat()
	if err != nil {
		return false
	}
	own, err := os.Stat("/proc/self/ns/user")
	return err == nil && os.SameFile(own, ownerStat)
}

// chooseMode is root exactly when we have the rights for it, unless the key mode
// says otherwise; mode root without the rights is an error of code 7.
func chooseMode(asked conf.Mode, r rights) (conf.Mode, error) {
	able := r.netAdmin && r.ownsNetns
	switch {
	case asked == conf.ModeRootless:
		return conf.ModeRootless, nil
	case able:
		return conf.ModeRoot, nil
	case asked == conf.ModeRoot:
		return "", conf.Mendf(conf.Invalid("mode", asked, missingRight(r)), "run as root, or set mode to auto or rootless")
	}
	return conf.ModeRootless, nil
}

func missingRight(r rights) string {
	if !r.netAdmin {
		return "it needs CAP_NET_ADMIN, which this process does not have"
	}
	return "it needs a network namespace that is owned by our own user namespace, and this one (" + netnsName() + ") is not"
}

func netnsName() string {
	name, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "net"
	}
	return name
}
