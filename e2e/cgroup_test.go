package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cgroupVariable has the folder of a cgroup of version 2 in which a machine may make others;
// empty where there are none.
const cgroupVariable = "AMBI_E2E_CGROUP"

// cgroupFor makes it for the scripts that speak of it. The host has it, so it is taken away
// from outside, when no process of the machine is left.
func cgroupFor(t *testing.T, script string) string {
	text, err := os.ReadFile(script)
	if err != nil || !strings.Contains(string(text), "incgroups") {
		return ""
	}
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(mount, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(mount, ownCgroup(), fmt.Sprintf("ambi-e2e.%d.%s", os.Getpid(), filepath.Base(script)))
		if os.Mkdir(dir, 0o755) != nil {
			return "" // a container may not
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		return dir
	}
	return ""
}

func ownCgroup() string {
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	return ""
}

// condition has what scripts may ask for.
func condition(name string) (bool, error) {
	switch name {
	case "cgroups":
		return os.Getenv(cgroupVariable) != "", nil
	case "systemd":
		_, err := exec.LookPath("/usr/lib/systemd/systemd")
		return err == nil, nil
	}
	return false, fmt.Errorf("no such condition: %s", name)
}
