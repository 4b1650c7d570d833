package scope

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What the names of our scopes and cgroups begin with, and those of scopes end with.
const (
	prefix = "ambi-"
	suffix = ".scope"
)

// ownCgroup is the cgroup of version 2 of this process, seen from the root of its cgroup
// namespace; empty: there are none of this version.
func ownCgroup() string {
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n")
		}
	}
	return ""
}

// Out says whether this process is in a scope of ours already, because the one that started it
// is.
func Out() bool {
	b, _ := os.ReadFile("/proc/self/cgroup")
	return inScope(string(b))
}

// inScope goes by the lines of version 2, and of the hierarchy by which systemd tells processes
// where it uses version 1.
func inScope(lines string) bool {
	for line := range strings.Lines(lines) {
		field := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(field) < 3 || (field[1] != "" && field[1] != "name=systemd") {
			continue
		}
		if unit := filepath.Base(field[2]); strings.HasPrefix(unit, prefix) && strings.HasSuffix(unit, suffix) {
			return true
		}
	}
	return false
}

// mountPoint is where cgroups of version 2 are mounted; empty: nowhere.
func mountPoint() string {
	for _, usual := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(usual, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return usual
		}
	}
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return ""
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		if field := strings.Fields(lines.Text()); len(field) > 2 && field[2] == "cgroup2" {
			return field[1]
		}
	}
	return ""
}

// highest is the folder of the highest cgroup above own in which we may make one and have a
// process go from own into that: which takes the right to write to what is above both
// (cgroups(7), "Cgroups delegation containment"). Empty: none.
func highest(mount, own string) (found string) {
	if mount == "" {
		return ""
	}
	for path := filepath.Dir(own); ; path = filepath.Dir(path) {
		dir := filepath.Join(mount, path)
		if unix.Access(dir, unix.W_OK|unix.X_OK) != nil || unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) != nil {
			return found // what is further up is not ours to arrange, even if it may be written
		}
		if found = dir; path == "/" {
			return found
		}
	}
}

// Start starts what command makes, in a cgroup of its own where that is the way out; folder is
// the one in which it has its files, by which the cgroup is called. cgroup is the folder of that,
// for [RemoveCgroup]; empty: it has none.
func (w Way) Start(folder string, command func() *exec.Cmd) (cmd *exec.Cmd, cgroup string, err error) {
	const tries = 10 // somebody may remove it in the moment before it has a process
	if w.Above != "" {
		sweep(w.Above)
		dir := filepath.Join(w.Above, prefix+filepath.Base(folder))
		for range tries {
			cmd = command()
			if err = startIn(dir, cmd); err == nil {
				return cmd, dir, nil
			}
			if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
				break
			}
		}
		_ = unix.Rmdir(dir)
	}
	cmd = command()
	return cmd, "", cmd.Start()
}

// startIn starts a process in a cgroup, without a moment outside of it (clone(2),
// CLONE_INTO_CGROUP, Linux 5.7).
func startIn(dir string, cmd *exec.Cmd) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	return cmd.Start()
}

// RemoveCgroup removes a cgroup that was made by [Way.Start] and has no process by now.
func RemoveCgroup(dir string) {
	if dir == "" {
		return
	}
	_ = unix.Rmdir(dir) // fails where processes are: somebody has started in it meanwhile
	sweep(filepath.Dir(dir))
}

// sweep removes cgroups of ours whose processes have ended by themselves: they cannot remove
// where they are. One that has a process stays.
func sweep(above string) {
	entries, _ := os.ReadDir(above) // no pattern: systemd has backslashes in names
	for _, e := range entries {
		kind := filepath.Ext(e.Name())
		if strings.HasPrefix(e.Name(), prefix) && (kind == ".hub" || kind == ".names") {
			_ = unix.Rmdir(filepath.Join(above, e.Name()))
		}
	}
}
