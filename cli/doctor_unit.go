package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/ambi-cni/ambi/scope"
)

// lookAtUnit says whether what ADD starts outlives the unit or cgroup in which it was called.
func (d *doctor) lookAtUnit(context.Context) {
	const name = "unit"
	way := scope.Find(os.Getenv("XDG_RUNTIME_DIR"))
	switch {
	case len(way.Managers) > 0:
		d.pass(name, "systemd is asked for a scope for what stays running (%s)", strings.Join(way.Managers, ", "))
	case way.Above != "":
		d.pass(name, "what stays running has a cgroup of its own in %s", way.Above)
	case way.Stays == "":
		d.pass(name, "what stays running is in no unit and no cgroup")
	default:
		c := check{Name: name, Status: warn, Seen: fmt.Sprintf("what stays running stays in the cgroup of who calls ADD, %s here, and ends with that: "+
			"no manager of systemd is there for this user, and no cgroup above may be written", way.Stays)}
		if _, err := os.Stat(scope.SystemdRuns); err == nil && !hostRoot() {
			c.Mend = fmt.Sprintf("loginctl enable-linger %d", os.Geteuid())
		}
		d.note(c)
	}
}
