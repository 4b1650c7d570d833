// Package lab makes machines out of namespaces: new network, mount and process
// namespaces, an empty /run and /tmp, and a neighbour host one veth away. What runs
// in one never touches the host, and leaves nothing behind when it ends, whatever
// happens in it. The machine is 192.0.2.1 and 2001:db8::1, its neighbour .2 and ::2.
//
// It takes root, and the programs ip, sysctl, unshare and awk.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
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
	return exec.Command("unshare", append([]string{"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", `"$0" "$@"; exit $?`}, argv...)...)
}

// Machine says where a machine's programs come from: folders of the host.
type Machine struct {
	Checkout string // the repository, at Stage/checkout, where users may read it
	Bin      string // Stage/bin: the plugin that is tested
	Tools    string // Stage/plugins: the delegates and the programs of the tests
}

// Furnish makes the machine that it runs in: folders, programs, the neighbour host.
func (m Machine) Furnish() error {
	steps := [][]string{
		// Namespaces that others have mounted on the host (other tests among them): they
		// come and go, and would look like ours.
		{"sh", "-c", "awk '$3 == \"nsfs\" {print $2}' /proc/self/mounts | xargs -r umount -l; ! grep -q ' nsfs ' /proc/self/mounts"},
		{"mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run"},
		{"sh", "-c", "mkdir -p " + Stage + "; echo nameserver 192.0.2.2 >" + Stage + "/resolv.conf"},
		{"mkdir", "-p", Stage + "/bin", Stage + "/plugins", Stage + "/checkout", "/var/lib/cni", "/etc/cni"},
		{"mount", "--bind", m.Checkout, Stage + "/checkout"},
		{"mount", "--bind", m.Bin, Stage + "/bin"},
		{"mount", "--bind", m.Tools, Stage + "/plugins"},
		{"mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/var/lib/cni"},
		{"mkdir", "-m", "1777", "/var/lib/cni/results"}, // cnitool's cache, for users too
		{"mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/etc/cni"},
		{"mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"},
		{"mount", "--bind", Stage + "/resolv.conf", "/etc/resolv.conf"},
		{"ip", "link", "set", "lo", "up"},
		// A bridge's addresses are there at once, with or without a port.
		{"sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"},
		{"ip", "netns", "add", "neighbour"},
		{"ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "neighbour"},
		{"ip", "addr", "add", "192.0.2.1/24", "dev", "uplink"},
		{"ip", "addr", "add", "2001:db8::1/64", "dev", "uplink", "nodad"},
		{"ip", "link", "set", "uplink", "up"},
		{"ip", "-n", "neighbour", "link", "set", "lo", "up"},
		{"ip", "-n", "neighbour", "addr", "add", "192.0.2.2/24", "dev", "eth0"},
		{"ip", "-n", "neighbour", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad"},
		{"ip", "-n", "neighbour", "link", "set", "eth0", "up"},
		{"ip", "route", "add", "default", "via", "192.0.2.2"},
		{"ip", "-6", "route", "add", "default", "via", "2001:db8::2"},
	}
	for _, argv := range steps {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", argv, err, out)
		}
	}
	if err := os.MkdirAll(RuntimeDir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Chmod(RuntimeDir, 0o700), os.Chown(RuntimeDir, UID, UID))
}
