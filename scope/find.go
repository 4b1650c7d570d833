package scope

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Way is how a process that this one starts gets out of where this one is. The zero value
// is that it need not: it is in no unit, and no cgroup but the root.
type Way struct {
	// Managers are sockets of managers of systemd, best first.
	Managers []string
	// Above is the folder of the cgroup in which others may be made; empty: none.
	Above string
	// Stays is the cgroup that cannot be left, as /proc/self/cgroup has it; empty with any of
	// the above.
	Stays string
}

// SystemdRuns is a folder that is there where systemd is process 1 (sd_booted(3)).
const SystemdRuns = "/run/systemd/system"

// Find looks what there is. runtimeDir is the value of XDG_RUNTIME_DIR.
func Find(runtimeDir string) Way {
	var w Way
	root := rootOfHost()
	for _, socket := range managers(root, runtimeDir) {
		if st, err := os.Stat(socket); err == nil && st.Mode().Type() == os.ModeSocket {
			w.Managers = append(w.Managers, socket)
		}
	}
	if len(w.Managers) > 0 {
		return w
	}
	own := ownCgroup()
	if own == "" || own == "/" {
		return w
	}
	// What is below a manager's root is the manager's, unless it has given it away. And from
	// outside of our cgroup namespace ("/..") we cannot be told where we are.
	if _, err := os.Stat(SystemdRuns); (err != nil || !root) && !strings.HasPrefix(own, "/..") {
		w.Above = highest(mountPoint(), own)
	}
	if w.Above == "" {
		w.Stays = own
	}
	return w
}

// managers are where the sockets may be. Those are the managers' own: no message bus has to run, nor
// to be started.
func managers(root bool, runtimeDir string) (sockets []string) {
	const socket = "systemd/private"
	if root {
		return []string{filepath.Join("/run", socket)}
	}
	if filepath.IsAbs(runtimeDir) {
		sockets = append(sockets, filepath.Join(runtimeDir, socket))
	}
	if usual := fmt.Sprintf("/run/user/%d", os.Geteuid()); runtimeDir != usual {
		sockets = append(sockets, filepath.Join(usual, socket))
	}
	return sockets
}

// rootOfHost: uid 0 of the first user namespace, whose number never changes (PROC_USER_INIT_INO).
func rootOfHost() bool {
	const first = 0xEFFFFFFD
	var st unix.Stat_t
	return os.Geteuid() == 0 && unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino == first
}
