package rootless

import (
	"strconv"
	"strings"

	"github.com/ambi-cni/ambi/plugin/record"
)

// watch tells when the container's namespace is gone.
type watch struct {
	netns   record.Netns
	process *record.Process // of a path under /proc/PID
}

// newWatch must be called while the namespace is there.
func newWatch(netns record.Netns) watch {
	w := watch{netns: netns}
	if rest, ok := strings.CutPrefix(netns.Path, "/proc/"); ok {
		name, _, _ := strings.Cut(rest, "/")
		if pid, err := strconv.Atoi(name); err == nil {
			if p, err := identify(pid); err == nil {
				w.process = &p
			}
		}
	}
	return w
}

// gone looks at the path, and for a path under /proc/PID at the process as well:
// to follow its links takes CAP_SYS_PTRACE over it (ptrace(2), "Ptrace access mode
// checking"), which a supervisor that has given up its capabilities lacks.
func (w watch) gone() bool {
	return w.netns.Gone() || (w.process != nil && !alive(w.process))
}
