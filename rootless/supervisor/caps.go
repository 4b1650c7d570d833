package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/names"
	"github.com/ambi-cni/ambi/rootless/driver"
)

// kept are the capabilities (capabilities(7)) that a supervisor has after its start, over a
// user namespace that nobody else is in: CAP_NET_ADMIN, for IP_TRANSPARENT sockets, for the
// routes of clients and for the interface of a restarted driver; CAP_NET_BIND_SERVICE, for
// clients whose port is below 1024; CAP_SYS_ADMIN, for threads of rootlessport, which move into
// the hub's network namespace when there are ports.
const kept = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_ADMIN

// startable are those that a program has which it starts, as uid 0 of that namespace: a driver
// that takes another's place. CAP_SETPCAP is for slirp4netns, whose sandbox empties its own
// bounding set (version 1.2.0 ends without it). CAP_NET_RAW is for a supervisor that takes
// this one's place, in which the hub of a private network announces its container.
const startable = kept | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_RAW

// startableFor are those of a hub with this driver: CAP_SYS_PTRACE is for the helper that sets the
// filter on the tap of another pasta (rootless/driver/tapfilter.go).
func startableFor(command *driver.Command) uint64 {
	if command.Hides() {
		return startable | 1<<unix.CAP_SYS_PTRACE
	}
	return startable
}

// dropCapabilities gives up all others, in every thread, and with them the way back: no
// execve(2) gives more. In a hub in which plugins run, those that run them get the rights of
// root over the hub at execve(2), out of the bounding set, so that this has to stay.
func (h *hub) dropCapabilities(command *driver.Command) error {
	var err error
	if h.config.runsPlugins() {
		err = confine.SetCapabilities(kept, kept)
	} else {
		limit := startableFor(command)
		err = errors.Join(confine.NoNewPrivileges(), h.boundFirstThread(limit), confine.SetCapabilities(kept, limit))
	}
	if err != nil {
		// ENOTSUP: with cgo there may be threads that Go does not know.
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "giving up the supervisor's capabilities: %v", err), "a binary that was built with cgo cannot do it, build with CGO_ENABLED=0")
	}
	return nil
}

// boundFirstThread cuts down the bounding set of the thread that starts the keeper. Each of the others
// has one of its own and is stopped for each capability of it, 35 times, which would be a quarter of what
// an ADD takes: [hub.boundThreads] comes after it. Until then no more can be had by it than is
// permitted, as there are no new privileges.
func (h *hub) boundFirstThread(limit uint64) (err error) {
	if firstThread == nil {
		return confine.BoundThreads(limit)
	}
	var was bool
	onFirstThread(func() { was, err = confine.BoundThread(limit) })
	if was {
		h.toBound = limit
	}
	return err
}

// boundThreads cuts down the bounding set of the other threads.
func (h *hub) boundThreads() {
	limit := h.toBound
	if limit == 0 {
		return
	}
	err := errors.Join(confine.SetCapabilities(kept|1<<unix.CAP_SETPCAP, limit), confine.BoundThreads(limit), confine.SetCapabilities(kept, limit))
	_ = h.confinedLess(err) // too late for who requires it
}

// confine has this process, and all that it starts, do without dangerous system calls. It is a
// list of what is refused, since filters stay at execve(2): slirp4netns and pasta mount a root
// of their own and have filters of their own, and plugins do what they like. With the driver
// relay, which is no program, there is nobody who mounts.
//
// Its error is one for who requires it.
func (h *hub) confine(command *driver.Command) error {
	refused := confine.Dangerous()
	if !h.config.runsPlugins() {
		refused = append(refused, confine.Rare()...)
	}
	if h.startsNobody(command) {
		refused = append(refused, confine.Mounting()...)
	}
	return h.confinedLess(confine.Refuse(refused))
}

// confinedLess says so, which is an error for who requires it.
func (h *hub) confinedLess(err error) error {
	if err != nil {
		h.log.Warn("the supervisor is confined less than it should be", "error", err)
	}
	if !h.required {
		return nil
	}
	return err
}

// startsNobody: no plugins run in the hub, and its driver is no program.
func (h *hub) startsNobody(command *driver.Command) bool {
	return !h.config.runsPlugins() && !filepath.IsAbs(command.Path)
}

// giveUpRights is what a hub does that has a driver.
// With a keeper it has to signal what began without it.
func (h *hub) giveUpRights(command *driver.Command) error {
	if err := h.dropCapabilities(command); err != nil {
		return err
	}
	var err error
	if h.startsNobody(command) {
		err = h.closeFiles(firstThread == nil || h.twin.there())
	}
	if command.APISocket == "" { // to which slirp4netns has its way by /proc/PID/fd of this process
		err = errors.Join(err, confine.Hide())
	}
	return h.confinedLess(err)
}

// closeFiles confines this process, and all that it starts, to the files that it needs
// (landlock(7)). It is for a hub that starts no other program: slirp4netns and pasta mount, which
// Landlock forbids, and plugins do what they like. A supervisor that a keeper has started is
// confined as that one.
func (h *hub) closeFiles(signals bool) error {
	if confine.Held() {
		return nil
	}
	files := confine.Files{
		Read:    slices.Concat([]string{"/etc", "/sys/fs/cgroup", "/usr/share/zoneinfo"}, foldersOfResolvConf()),
		Write:   []string{h.config.StateDir, os.DevNull, "/dev/net/tun", "/proc"}, // sysctls, and its name
		Execute: []string{ownProgram},
		Ports:   true,
		Signals: signals,
	}
	return files.Only()
}

// foldersOfResolvConf are where /etc/resolv.conf leads, today or when the host's manager of
// networks has changed.
func foldersOfResolvConf() []string {
	folders := []string{"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman"}
	if path, err := filepath.EvalSymlinks(names.ResolvConf); err == nil {
		folders = append(folders, filepath.Dir(path))
	}
	return folders
}
