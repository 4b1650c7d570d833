// Package lab makes machines out of namespaces: new network, mount and process
// namespaces, an empty /run and /tmp, and a neighbour host one veth away. What runs
// in one never touches the host, and leaves nothing behind when it ends, whatever
// happens in it. The machine is 192.0.2.1 and 2001:db8::1, its neighbour .2 and ::2.
//
// It takes root, and the programs ip and unshare. Unit tests that only need a namespace
// have package unit.
package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stage is the folder where a machine has its programs: bin, plugins, checkout.
const Stage = "/run/e2e"

// UID is the unprivileged user of a machine: any that nobody has.
const UID = 40001

// RuntimeDir is the user's XDG_RUNTIME_DIR.
var RuntimeDir = "/run/user/" + strconv.Itoa(UID)

// Command is a program as the first process but one of a new machine, which it has
// to furnish. The first is a shell, which reaps what loses its parent.
func Command(argv ...string) *exec.Cmd {
	return exec.Command("unshare", append([]string{"--net", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", `"$0" "$@"; exit $?`}, argv...)...)
}

// Machine says where a machine's programs come from: folders of the host.
type Machine struct {
	Checkout string // the repository, at Stage/checkout, where users may read it
	Bin      string // Stage/bin: the plugin that is tested
	Tools    string // Stage/plugins: the delegates and the programs of the tests
}

// Furnish makes the machine that it runs in: folders, programs, the neighbour host.
// A suite makes hundreds of machines, so it starts no program for what is one system
// call.
func (m Machine) Furnish() error {
	steps := []func() error{forgetNamespaces, m.folders, user, network}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("furnishing a machine: %w", err)
		}
	}
	return nil
}

// forgetNamespaces unmounts the namespaces that others have mounted on the host (other
// tests among them): they come and go, and would look like ours. One whose file is
// removed on the host in this moment goes by itself: the kernel unmounts it everywhere.
func forgetNamespaces() error {
	for try := 1; ; try++ {
		named, err := namedNamespaces()
		if err != nil || len(named) == 0 {
			return err
		}
		if try == 3 {
			return fmt.Errorf("namespaces of others stay mounted: %v", named)
		}
		for _, path := range named {
			_ = unix.Unmount(path, unix.MNT_DETACH) // its owner may have removed it
		}
	}
}

// namedNamespaces are where namespaces are mounted, and what engines have mounted for
// their containers.
func namedNamespaces() (paths []string, err error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && (fields[2] == "nsfs" || strings.HasPrefix(fields[1], "/var/lib/")) {
			paths = append(paths, fields[1])
		}
	}
	return paths, err
}

// folders gives the machine its programs and empty folders of state.
func (m Machine) folders() error {
	for _, f := range []struct{ target, source, mode string }{ // without a source: empty
		{"/run", "", "mode=0755"},
		{Stage + "/checkout", m.Checkout, ""}, {Stage + "/bin", m.Bin, ""}, {Stage + "/plugins", m.Tools, ""},
		{"/var/lib/cni", "", "mode=0755"}, {"/etc/cni", "", "mode=0755"}, {"/tmp", "", "mode=1777"},
	} {
		err := os.MkdirAll(f.target, 0o755)
		if err == nil && f.source == "" {
			err = unix.Mount("tmpfs", f.target, "tmpfs", 0, f.mode)
		} else if err == nil {
			err = unix.Mount(f.source, f.target, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("folder %s: %w", f.target, err)
		}
	}
	const results = "/var/lib/cni/results" // cnitool's cache, for users too
	if err := errors.Join(os.Mkdir(results, 0o755), os.Chmod(results, 0o777|fs.ModeSticky)); err != nil {
		return err
	}
	const resolv = Stage + "/resolv.conf"
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.2\n"), 0o644); err != nil {
		return err
	}
	return unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, "")
}

func user() error {
	if err := os.MkdirAll(RuntimeDir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Chmod(RuntimeDir, 0o700), os.Chown(RuntimeDir, UID, UID))
}

// network makes the neighbour host and the wire to it.
func network() error {
	// A bridge's addresses are there at once, with or without a port.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	for _, step := range []struct{ args, input string }{
		{"netns add neighbour", ""},
		{"-batch -", `link set lo up
link add uplink type veth peer name eth0 netns neighbour
addr add 192.0.2.1/24 dev uplink
addr add 2001:db8::1/64 dev uplink nodad
link set uplink up
`},
		{"-n neighbour -batch -", `link set lo up
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8::2/64 dev eth0 nodad
link set eth0 up
`},
		{"-batch -", `route add 0.0.0.0/0 via 192.0.2.2
route add ::/0 via 2001:db8::2
`},
	} {
		cmd := exec.Command("ip", strings.Fields(step.args)...)
		cmd.Stdin = strings.NewReader(step.input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", step.args, err, out)
		}
	}
	return errors.Join(
		awaitRoute("ip", "-6", "route", "show", "table", "local", "2001:db8::1"),
		awaitRoute("ip", "-n", "neighbour", "-6", "route", "show", "table", "local", "2001:db8::2"))
}

// awaitRoute waits until packets for an address of IPv6 are delivered. The kernel makes
// that route some time after the address, on a busy machine a second, and whoever has
// looked at the machine meanwhile would say that it has changed.
func awaitRoute(show ...string) error {
	for deadline := time.Now().Add(Patience); ; time.Sleep(5 * time.Millisecond) {
		out, err := exec.Command(show[0], show[1:]...).Output()
		if err != nil {
			return fmt.Errorf("%q: %w", show, err)
		}
		if len(out) > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%q shows none", show)
		}
	}
}
