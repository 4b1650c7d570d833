package supervisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// watch tells when the container's namespace is gone. It opens nothing after its
// start: clients may have used up what can be opened.
type watch struct {
	netns   record.Netns
	process *os.File // pidfd, of a path under /proc/PID
	folder  string   // /proc/PID
}

// watchOf is newWatch of a namespace that may be gone: that is seen by its path then.
func watchOf(netns record.Netns) watch {
	w, err := newWatch(netns)
	if err != nil {
		return watch{netns: netns}
	}
	return w
}

func (w watch) close() {
	if w.process != nil {
		w.process.Close()
	}
}

// newWatch must be called while the namespace is there.
func newWatch(netns record.Netns) (watch, error) {
	w := watch{netns: netns}
	pid, ok := pidOf(netns.Path)
	if !ok {
		return w, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case record.IsThread(err):
		return w, nil // a thread's; there are no pidfds of those before Linux 6.9
	case err != nil:
		return w, fmt.Errorf("watching process %d of the container's namespace: %w", pid, err)
	}
	w.process, w.folder = os.NewFile(uintptr(fd), "pidfd"), "/proc/"+strconv.Itoa(pid)
	return w, nil
}

// pidOf is the PID of a path under /proc/PID.
func pidOf(path string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(path, "/proc/")
	if !ok {
		return 0, false
	}
	name, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(name)
	return pid, err == nil
}

// gone looks at the path, and for a path under /proc/PID at the process as well:
// to follow its links takes CAP_SYS_PTRACE over it (ptrace(2), "Ptrace access mode
// checking"), which a supervisor that has given up its capabilities lacks. Where /proc
// is mounted with hidepid=2 (proc(5)) it does not even see the folder any more, and only
// the process tells.
func (w watch) gone() bool {
	if w.process == nil {
		return w.netns.Gone()
	}
	return record.HasEnded(w.process) || (w.visible() && w.netns.Gone())
}

func (w watch) visible() bool {
	var st unix.Stat_t
	return unix.Stat(w.folder, &st) == nil
}
