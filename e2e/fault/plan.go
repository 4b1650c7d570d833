package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/e2e/fault/inject"
)

// planned is one thing that is to happen to one verb, and what is called after it.
type planned struct {
	Verb string `json:"verb"`
	// Beside another member of a shared network, or else as its first and last one.
	Beside bool `json:"beside,omitempty"`

	Fault *inject.Fault `json:"fault,omitempty"`
	// Without a fault: a signal at a part of the verb's usual duration, to it alone or
	// to its whole process group.
	Moment float64 `json:"moment,omitempty"`
	Signal string  `json:"signal,omitempty"`
	Group  bool    `json:"group,omitempty"`

	After string `json:"after"` // DEL, GC or ADD
}

func (p *planned) String() string {
	if p.Fault != nil {
		return p.what() + " " + p.Fault.String()
	}
	whom := "the verb"
	if p.Group {
		whom = "its process group"
	}
	return fmt.Sprintf("%s %s to %s after %.1f %% of its time", p.what(), p.Signal, whom, 100*p.Moment)
}

// besideMark follows the name of a verb that happens beside another member.
const besideMark = " beside another"

// what is the verb, and beside whom.
func (p *planned) what() string {
	if p.Beside {
		return p.Verb + besideMark
	}
	return p.Verb
}

// action is what happened, for the tables.
func (p *planned) action() string {
	if p.Fault == nil {
		return p.Signal
	}
	return p.Fault.Errno + p.Fault.Signal
}

func (p *planned) role() string {
	if p.Fault == nil {
		return "by time"
	}
	return p.Fault.Role
}

// signalled says whether a process of this role got a signal.
func (p *planned) signalled(role string) bool {
	return p.Fault != nil && p.Fault.Signal != "" && p.Fault.Role == role
}

// ownRoles are the processes that ambi answers for.
var ownRoles = []string{"ambi", "supervisor", inject.Inside, "slirp4netns", "nsenter", "setpriv"}

// foreign says whether it happens to a program of others.
func (p *planned) foreign() bool {
	return p.Fault != nil && !slices.Contains(ownRoles, strings.TrimSuffix(p.Fault.Role, " (forked)"))
}

// knownLeaks are those of the delegates themselves: what every runtime that calls
// them is left with.
var knownLeaks = []struct {
	role, left, why string // left matches each line that is new
}{
	{"tuning", `/run/cni/tuning/\S+\.json$`, "tuning 1.9.1 keeps a backup that it could not write, since its DEL cannot read it"},
}

// knownLeak says why the problem is one of a delegate itself; empty when it is not.
func (o *outcome) knownLeak() string {
	for _, k := range knownLeaks {
		if !o.foreign() || strings.TrimSuffix(o.role(), " (forked)") != k.role || !strings.Contains(o.Problem, "left behind") {
			continue
		}
		all := true
		for line := range strings.Lines(o.Problem) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "+ ") || strings.HasPrefix(line, "- ") {
				all = all && regexp.MustCompile(k.left).MatchString(line)
			}
		}
		if all {
			return k.why
		}
	}
	return ""
}

// errorsOf are the errors that each system call may fail with.
var errorsOf = map[string][]string{
	"ENOSPC": {"openat", "open", "write", "pwrite64", "fsync", "mkdirat", "mkdir", "rename", "renameat", "renameat2", "ftruncate", "linkat", "symlinkat"},
	"EMFILE": {"openat", "open", "socket", "socketpair", "pipe2", "dup", "dup2", "dup3", "fcntl", "eventfd2", "epoll_create1", "pidfd_open", "accept4", "memfd_create"},
	"ENOMEM": {"openat", "socket", "mmap", "mprotect", "brk", "clone", "clone3", "fork", "vfork", "execve", "sendto", "sendmsg", "recvfrom", "recvmsg", "bind", "setsockopt", "ioctl",
		"setns", "unshare", "mount", "epoll_ctl", "pipe2", "mkdirat", "flock"},
	"EPERM": {"openat", "open", "socket", "bind", "sendto", "sendmsg", "setns", "unshare", "mount", "umount2", "unlinkat", "unlink", "rename", "renameat", "renameat2", "mkdirat", "fchmod", "fchmodat",
		"fchown", "kill", "pidfd_open", "pidfd_send_signal", "setsid", "ioctl", "setsockopt", "execve", "clone", "clone3", "connect"},
	"EIO": {"read", "pread64", "write", "pwrite64", "fsync", "openat", "open", "rename", "renameat", "renameat2", "unlinkat", "unlink", "getdents64", "newfstatat", "statx", "fstat", "readlinkat", "readlink",
		"recvfrom", "recvmsg", "execve", "flock", "ioctl", "ftruncate"},
}

// signals are sent at steps.
var signals = []string{"SIGKILL", "SIGTERM"}

// weights say how much of the work each verb and role is worth: what is ours more
// than what others wrote.
var (
	verbWeights = map[string]int{"ADD": 4, "DEL": 2, "GC": 1, "CHECK": 1}
	roleWeights = map[string]int{"ambi": 3, "supervisor": 3, inject.Inside: 2}
)

// momentShare is the part of the faults that are signals by time: the second way.
const momentShare = 0.1

// group are the faults of a kind, in the order of the steps.
type group struct {
	weight int
	faults []*planned
}

// counts are the system calls of each verb, with its besideMark, by role and name.
type counts map[string]map[string]map[string]int

// groups are all faults that are possible.
func groups(c counts) []group {
	var all []group
	for _, what := range slices.Sorted(maps.Keys(c)) {
		verb, beside := strings.CutSuffix(what, besideMark)
		for _, role := range slices.Sorted(maps.Keys(c[what])) {
			calls := c[what][role]
			for _, errno := range slices.Sorted(maps.Keys(errorsOf)) {
				g := group{weight: weight(verb, role)}
				for _, call := range errorsOf[errno] {
					for n := range calls[call] {
						g.faults = append(g.faults, &planned{Verb: verb, Beside: beside, Fault: &inject.Fault{Role: role, Call: call, N: n + 1, Errno: errno}})
					}
				}
				all = append(all, g)
			}
			for _, signal := range signals {
				g := group{weight: weight(verb, role)}
				for n := range calls[inject.Step] {
					g.faults = append(g.faults, &planned{Verb: verb, Beside: beside, Fault: &inject.Fault{Role: role, Call: inject.Step, N: n + 1, Signal: signal}})
				}
				all = append(all, g)
			}
		}
	}
	return slices.DeleteFunc(all, func(g group) bool { return len(g.faults) == 0 })
}

func weight(verb, role string) int { return verbWeights[verb] * cmp.Or(roleWeights[role], 1) }

// plan chooses n faults of all that are possible, none twice: from every group in
// turn, spread evenly over its steps.
func plan(c counts, n int, seed uint64) []*planned {
	random := rand.New(rand.NewPCG(seed, 0))
	all := groups(c)
	var tickets []int
	for i := range all {
		all[i].faults = spread(all[i].faults, random.Float64())
		for range all[i].weight {
			tickets = append(tickets, i)
		}
	}
	chosen := moments(int(float64(n) * momentShare))
	for left := true; left && len(chosen) < n; {
		left = false
		random.Shuffle(len(tickets), func(i, j int) { tickets[i], tickets[j] = tickets[j], tickets[i] })
		for _, i := range tickets {
			if g := &all[i]; len(g.faults) > 0 && len(chosen) < n {
				chosen = append(chosen, g.faults[0])
				g.faults = g.faults[1:]
				left = true
			}
		}
	}
	for i, p := range chosen {
		p.After = []string{"DEL", "GC", "ADD"}[i%3]
		if p.Verb != "ADD" && p.After == "ADD" {
			p.After = "DEL" // the attachment may be alive still, and ADD right to refuse
		}
	}
	// Machines get them in an order in which neighbours have nothing in common.
	random.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	return chosen
}

// spread orders a list so that every beginning of it is spread evenly over it.
func spread[T any](list []T, start float64) []T {
	const golden = 0.6180339887498949
	taken := make([]bool, len(list))
	out := make([]T, 0, len(list))
	for x := start; len(out) < len(list); _, x = math.Modf(x + golden) {
		i := int(x * float64(len(list)))
		for taken[i] {
			i = (i + 1) % len(list)
		}
		taken[i] = true
		out = append(out, list[i])
	}
	return out
}

// moments are n signals at moments spread evenly over ADD and a little more.
func moments(n int) []*planned {
	var all []*planned
	for i := range n {
		all = append(all, &planned{Verb: "ADD", Signal: signals[i%4/3], Group: i%2 == 1, Moment: 1.05 * float64(i) / float64(n)})
	}
	return all
}

// ofTests says whether a role is a program of the tests.
func ofTests(role string) bool { return strings.HasPrefix(role, "sh") || role == "dash" || role == "" }
