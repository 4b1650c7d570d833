package suite

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// stage is where a machine has the suite's own things. It is left out of every
// comparison.
const stage = "/run/conformance"

// The unprivileged user: any uid that nobody has.
const userID = 40001

// patience bounds every wait for a condition: it only ends what would never come.
const patience = 3 * time.Minute

// machine is what a point runs in: network, mount and process namespaces of its
// own, with /run, /tmp and /var/lib/cni empty. The host is 192.0.2.1, 192.0.2.7 and
// 2001:db8::1, with default routes.
type machine struct {
	rootless bool
	path     string // CNI_PATH
}

// furnish makes the machine, in namespaces that are there already.
func furnish(job *job) (*machine, error) {
	// Opened first: the folders that are covered may be those that they are in.
	sources := append([]string{job.Self, job.Plugin}, job.Path...)
	files := make([]*os.File, len(sources))
	for i, path := range sources {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		files[i] = f
	}
	if err := errors.Join(forgetNamespaces(), coverFolders()); err != nil {
		return nil, err
	}
	for _, dir := range []string{stage, stage + "/bin", stage + "/suite"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	m := &machine{rootless: job.Rootless}
	targets := []string{stage + "/suite/program", stage + "/bin/" + job.Type}
	for i := range job.Path {
		targets = append(targets, fmt.Sprintf("%s/path%d", stage, i))
	}
	for i, target := range targets {
		if err := bind(fmt.Sprintf("/proc/self/fd/%d", files[i].Fd()), target); err != nil {
			return nil, err
		}
	}
	if err := delegates(stage + "/delegates"); err != nil {
		return nil, err
	}
	m.path = strings.Join(append([]string{stage + "/bin", stage + "/delegates"}, targets[2:]...), ":")
	return m, errors.Join(furnishNetwork(), furnishUser())
}

// delegates are the names of the scripted plugin. The one with a version at its end
// speaks nothing newer.
var delegateNames = []string{"delegate", "delegate-b", "delegate-c", "delegate-1.0.0"}

// delegates makes a folder with the scripted plugin under its names.
func delegates(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, name := range delegateNames {
		if err := os.Symlink(stage+"/suite/program", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// forgetNamespaces unmounts the namespaces that others have mounted on the host, and what
// engines have for their containers: they come and go, and would look like ours.
func forgetNamespaces() error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && (fields[2] == "nsfs" || strings.HasPrefix(fields[1], "/var/lib/")) {
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
	return nil
}

// coverFolders gives the machine empty folders of state.
func coverFolders() error {
	state := "/var/lib/cni"
	if _, err := os.Stat(state); err != nil {
		state = "/var/lib" // nothing on the host is made for the sake of a mount
	}
	for dir, mode := range map[string]string{"/run": "0755", "/tmp": "1777", state: "0755"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode="+mode); err != nil {
			return fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	return os.MkdirAll("/var/lib/cni", 0o755)
}

func bind(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		err = os.WriteFile(target, nil, 0o755)
	}
	if err == nil {
		err = unix.Mount(source, target, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	return nil
}

// furnishNetwork gives the host addresses and default routes: an uplink whose other
// end is in the machine, too.
func furnishNetwork() error {
	// Addresses are usable at once.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	uplink := &netlink.Veth{LinkAttrs: attrs, PeerName: "beyond"}
	if err := netlink.LinkAdd(uplink); err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	beyond, err := netlink.LinkByName("beyond")
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{lo, beyond, uplink} {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	for _, text := range []string{hostIPv4 + "/24", otherIPv4 + "/24", hostIPv6 + "/64"} {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD // it is usable at once
		if err := netlink.AddrAdd(uplink, addr); err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
		if text == otherIPv4+"/24" {
			continue // the route is there
		}
		gateway := addr.IP
		gateway[len(gateway)-1] = 2
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Index, Gw: gateway}); err != nil {
			return fmt.Errorf("route via %s: %w", gateway, err)
		}
	}
	return settled(hostIPv6)
}

// settled waits for the kernel's own route to an IPv6 address, which comes some time
// after the address.
func settled(address string) error {
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL}
	if !waitUntil(func() bool {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE)
		return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == address+"/128" })
	}) {
		return fmt.Errorf("the kernel has no route to its own address %s", address)
	}
	return nil
}

func runtimeDir() string { return fmt.Sprintf("/run/user/%d", userID) }

func furnishUser() error {
	if os.Getuid() != 0 {
		return nil
	}
	if err := os.MkdirAll(runtimeDir(), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(runtimeDir(), 0o700); err != nil {
		return err
	}
	err := os.Chown(runtimeDir(), userID, userID)
	if errors.Is(err, unix.EINVAL) {
		return nil // a user namespace of one uid: there is no other user here
	}
	return err
}

// container is a network namespace that a runtime has made.
type container struct {
	path   string // as CNI_NETNS
	name   string // of a namespace under /run/netns; empty for that of a process
	holder *exec.Cmd
}

// newContainer makes a namespace: under /run/netns as root, else that of a process
// of the user in a user namespace of its own.
func (m *machine) newContainer(name string) (*container, error) {
	if m.rootless {
		c, err := newUserContainer()
		if err == nil {
			err = c.do(loopbackUp)
		}
		return c, err
	}
	c := &container{path: "/run/netns/" + name, name: name}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.path, nil, 0o444); err != nil {
		return nil, err
	}
	return c, onFreshThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", c.path, "", unix.MS_BIND, "")
	})
}

// loopbackUp is what every runtime does first.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return settled("::1")
}

func newUserContainer() (*container, error) {
	cmd := exec.Command("unshare", "-Urn", "sleep", "infinity")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = credentials(true)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	dir := "/proc/" + strconv.Itoa(cmd.Process.Pid)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	ready := waitUntil(func() bool {
		// unshare has become sleep: all its namespaces are made and mapped.
		comm, _ := os.ReadFile(dir + "/comm")
		theirs, err := os.Readlink(dir + "/ns/net")
		return err == nil && theirs != own && string(comm) == "sleep\n"
	})
	if !ready {
		return nil, errors.New("the user's namespaces are not made (unshare -Urn)")
	}
	return &container{path: dir + "/ns/net", holder: cmd}, nil
}

// pid is that of a process in the namespace, which is made when there is none.
func (c *container) pid() (int, error) {
	if c.holder != nil {
		return c.holder.Process.Pid, nil
	}
	cmd := exec.Command("nsenter", "--net="+c.path, "sleep", "infinity")
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	c.holder = cmd
	same := waitUntil(func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return string(comm) == "sleep\n"
	})
	if !same {
		return 0, errors.New("no process in the namespace (nsenter)")
	}
	return cmd.Process.Pid, nil
}

// destroy ends the namespace as a runtime does: before DEL, when it is late.
func (c *container) destroy() {
	if c.holder != nil {
		_ = c.holder.Process.Kill()
		_ = c.holder.Wait()
		c.holder = nil
	}
	if c.name != "" {
		_ = unix.Unmount(c.path, unix.MNT_DETACH)
		os.Remove(c.path)
	}
}

// do runs f inside the namespace. Sockets that f makes stay there.
func (c *container) do(f func() error) error {
	fd, err := os.Open(c.path)
	if err != nil {
		return err
	}
	defer fd.Close()
	return onFreshThread(func() error {
		if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// links returns a handle for the links, addresses and routes of the namespace.
func (c *container) links() (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(c.path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// onFreshThread runs f on a thread that ends with it, so that what f does to the
// thread's namespaces is of no matter to anybody.
func onFreshThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}

// waitUntil asks again and again until the condition holds or patience is over.
func waitUntil(condition func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
