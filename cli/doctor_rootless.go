package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/rootless/driver"
)

const kernel = "kernel"

func (d *doctor) lookAtKernel(context.Context) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		d.note(check{Name: kernel, Status: warn, Seen: fmt.Sprintf("its version cannot be read: %v", err)})
		return
	}
	d.judgeKernel(unix.ByteSliceToString(uts.Release[:]))
}

func (d *doctor) judgeKernel(release string) {
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	switch {
	case major < 5 || (major == 5 && minor < 3):
		d.note(check{Name: kernel, Status: fail, Seen: "Linux " + release + "; ambi needs 5.3 or newer, for pidfd_open(2)"})
	case major == 5 && minor < 6:
		d.forMode(conf.ModeRootless, check{Name: kernel, Status: fail, Seen: "Linux " + release + "; a network without root needs 5.6 or newer, for pidfd_getfd(2)"})
	case major == 5 && minor < 11:
		d.note(check{Name: kernel, Status: warn, Seen: "Linux " + release + "; before 5.11 a descriptor that a runtime leaves open by mistake stays open in the supervisor"})
	default:
		d.pass(kernel, "Linux %s", release)
	}
}

// driverSeen is a driver as this host has it.
type driverSeen struct {
	driver.Driver
	info *driver.Info
	err  error // why it cannot be used
}

// lookAtDriver looks at each driver. One is enough, and relay is always there.
func (d *doctor) lookAtDriver(context.Context) {
	taken, names := "", []string{}
	for _, way := range driver.Known() {
		info, err := way.Inspect("")
		d.noteDriver(driverSeen{way, info, err})
		names = append(names, way.Name())
		if err == nil && taken == "" {
			taken = way.Name()
		}
	}
	d.pass("driver", "auto takes %s, the first of %s that is there", taken, strings.Join(names, ", "))
}

// noteDriver says what a driver is like.
func (d *doctor) noteDriver(s driverSeen) {
	c := check{Name: s.Name(), Status: pass, Mend: installing(s.Package()), AsRoot: true}
	what := strings.TrimSpace(s.info.Path + " " + s.info.Version)
	switch {
	case s.err != nil && s.info.Path != "":
		c.Status, c.Seen = warn, conf.Message(s.err)
	case s.err != nil:
		c.Seen, c.Mend = "is not installed, and need not be", ""
	case len(s.info.Lacks) > 0:
		c.Status, c.Seen = warn, what+" has no option --"+strings.Join(s.info.Lacks, ", --")+", so what they are for is missing"
	case s.info.Warning != "":
		c.Seen, c.Mend = s.info.Path+" is "+s.info.Warning, ""
		if d.mode == conf.ModeRootless {
			c.Status = warn
		}
	case what == "":
		c.Seen, c.Mend = "a part of ambi", ""
	default:
		c.Seen, c.Mend = what+", with all options that ambi uses", ""
	}
	d.note(c)
}

func (d *doctor) lookAtTun(context.Context) {
	const name = "/dev/net/tun"
	err := driver.Of("").CheckHost()
	if err == nil {
		d.pass(name, "can be opened")
		return
	}
	what := conf.Message(err)
	c := check{Name: name, Status: fail, Seen: what, AsRoot: true}
	switch _, statErr := os.Stat(name); {
	case errors.Is(statErr, fs.ErrNotExist):
		c.Mend = "mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200"
	case strings.Contains(what, unix.EACCES.Error()) || strings.Contains(what, unix.EPERM.Error()):
		c.Mend = "chmod 0666 /dev/net/tun"
	default:
		c.Mend = "modprobe tun"
	}
	d.forMode(conf.ModeRootless, c)
}

// probeCommand is what runs inside the namespaces of the trial.
const probeName = "probe-user-namespace"

func probeCommand() *cobra.Command {
	return &cobra.Command{
		Use: probeName, Hidden: true, Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		},
	}
}

// lookAtUserNamespaces tries what a runtime does: a user namespace with a network
// namespace in it, and to change something there.
func (d *doctor) lookAtUserNamespaces(context.Context) {
	const name = "user namespaces"
	cmd := exec.Command("/proc/self/exe", probeName)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		d.pass(name, "one can be made, with a network namespace in it")
		return
	}
	seen := "one with a network namespace in it cannot be made: " + reasonOf(err)
	if said := strings.TrimSpace(string(out)); said != "" {
		first, _, _ := strings.Cut(said, "\n")
		seen = "in one that was just made the network cannot be changed: " + first
	}
	why, mend := restrictionOf(readSysctl)
	d.forMode(conf.ModeRootless, check{Name: name, Status: fail, Seen: seen + "; " + why, Mend: mend, AsRoot: mend != ""})
}

// lookAtHardening looks for what confines processes of ours that stay.
func (d *doctor) lookAtHardening(context.Context) {
	const name = "hardening"
	lacks := confine.Lacks()
	for _, l := range lacks {
		d.note(check{Name: name, Status: warn, Seen: fmt.Sprintf("the kernel lacks %v; ambi's processes are confined by the rest, and a network with \"hardening\": \"require\" is an error", l)})
	}
	if len(lacks) == 0 {
		d.pass(name, "the kernel has seccomp and Landlock%s, by which ambi's processes are confined", confine.Weaker())
	}
}

func reasonOf(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

// restriction is a sysctl that keeps users from making namespaces.
type restriction struct {
	key      string
	restrict func(value int) bool
	mended   int
}

func restrictions() []restriction {
	is := func(n int) func(int) bool { return func(value int) bool { return value == n } }
	few := func(value int) bool { return value < 16 }
	const many = 15000
	return []restriction{
		{"kernel.unprivileged_userns_clone", is(0), 1},             // Debian
		{"kernel.apparmor_restrict_unprivileged_userns", is(1), 0}, // Ubuntu
		{"user.max_user_namespaces", few, many},
		{"user.max_net_namespaces", few, many},
	}
}

// restrictionOf finds the sysctl that is the cause of a failed trial.
func restrictionOf(read func(key string) (int, bool)) (why, mend string) {
	for _, r := range restrictions() {
		if value, there := read(r.key); there && r.restrict(value) {
			return fmt.Sprintf("%s is %d", r.key, value), fmt.Sprintf("sysctl -w %s=%d", r.key, r.mended)
		}
	}
	return "no sysctl says so: a seccomp filter or security module around this process does, or there are too many namespaces", ""
}

func readSysctl(key string) (int, bool) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

// lookAtSubordinateIDs: ambi needs none, but Podman and RootlessKit do.
func (d *doctor) lookAtSubordinateIDs(context.Context) {
	const name = "subordinate ids"
	uid := strconv.Itoa(os.Getuid())
	if uid == "0" {
		d.pass(name, "not needed by root")
		return
	}
	who := uid
	if u, err := user.LookupId(uid); err == nil {
		who = u.Username
	}
	if _, err := exec.LookPath("newuidmap"); err != nil {
		d.note(check{Name: name, Status: warn, Seen: "newuidmap is not installed, which Podman and RootlessKit need", Mend: installing("uidmap"), AsRoot: true})
		return
	}
	var missing, mends []string
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		has, next := subordinates(file, who, uid)
		if !has {
			missing = append(missing, file)
			mends = append(mends, fmt.Sprintf("echo %s:%d:%d >>%s", quoted(who), next, subordinateCount, file))
		}
	}
	if len(missing) > 0 {
		d.note(check{
			Name: name, Status: warn, Seen: fmt.Sprintf("%s has none in %s, which Podman and RootlessKit need", who, strings.Join(missing, " and ")),
			Mend: strings.Join(mends, " && "), AsRoot: true,
		})
		return
	}
	d.pass(name, "%s has some in /etc/subuid and /etc/subgid", who)
}

const (
	firstSubordinate = 100000
	subordinateCount = 65536
)

// subordinates says whether a file of subuid(5) has a range for the user, and where
// the next range would be free.
func subordinates(file, who, uid string) (has bool, next int) {
	next = firstSubordinate
	b, _ := os.ReadFile(file) // none: no ranges
	for line := range strings.Lines(string(b)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 {
			continue
		}
		start, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err1 != nil || err2 != nil {
			continue
		}
		has = has || ((fields[0] == who || fields[0] == uid) && count > 0)
		next = max(next, start+count)
	}
	return has, next
}

func (d *doctor) lookAtLowPorts(context.Context) {
	const name, key, usual = "low ports", "net.ipv4.ip_unprivileged_port_start", 1024
	first, there := readSysctl(key)
	switch {
	case !there:
		d.note(check{Name: name, Status: warn, Seen: key + " cannot be read"})
	case first > usual:
		d.note(check{
			Name: name, Status: warn, Seen: fmt.Sprintf("without root only ports from %d on can be published (%s)", first, key),
			Mend: fmt.Sprintf("sysctl -w %s=%d", key, usual), AsRoot: true,
		})
	case first == 0:
		d.pass(name, "without root every port can be published")
	default:
		d.pass(name, "without root ports from %d on can be published (%s)", first, key)
	}
}
