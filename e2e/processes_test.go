package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// process compares a process of ours with its column in the table of SECURITY.md: all that
// /proc shows of its rights, its bounds, and what it got from who started it. A command prints
// which process it is. One that has just started gives up the rest while it is looked at.
func process(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2)
	promised, err := columnOf(stage+"/checkout/SECURITY.md", args[0])
	ts.Check(err)
	ts.Check(ts.Exec(args[1], args[2:]...))
	pid := strings.TrimSpace(ts.ReadFile("stdout"))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		seen, err := factsOf(pid)
		ts.Check(err)
		above, err := factsOf(parentOf(pid))
		ts.Check(err)
		differs := differences(seen, promised, above)
		if differs == "" {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s, process %s: %s", args[0], pid, differs)
		}
	}
}

// What a fact is that a process has from the one that started it, and what a list begins with that is
// not whole at each moment, or on each kernel.
const (
	asItsCaller = "its caller's"
	atMost      = "at most "
)

func isAmong(list, of string) bool {
	all := strings.Split(of, ", ")
	return !slices.ContainsFunc(strings.Split(list, ", "), func(one string) bool { return !slices.Contains(all, one) })
}

func differences(seen, promised, above map[string]string) string {
	var differ []string
	for fact, value := range promised {
		if value == asItsCaller {
			value = above[fact]
		}
		if some, ok := strings.CutPrefix(value, atMost); ok && isAmong(seen[fact], some) {
			continue
		}
		if seen[fact] != value {
			differ = append(differ, fmt.Sprintf("%s is %q, and %q in SECURITY.md", fact, seen[fact], value))
		}
	}
	for fact := range seen {
		if _, ok := promised[fact]; !ok {
			differ = append(differ, fmt.Sprintf("the table in SECURITY.md has no row %q", fact))
		}
	}
	slices.Sort(differ)
	return strings.Join(differ, "; ")
}

func parentOf(pid string) string {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	_, after, _ := strings.Cut(string(status), "\nPPid:")
	parent, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	return parent
}

// columnOf is the column of a table by the first cell of each row. The table is the one with
// a column of that name.
func columnOf(file, name string) (map[string]string, error) {
	page, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	column := map[string]string{}
	at := -1
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		switch {
		case !strings.HasPrefix(line, "|"):
			if at > 0 {
				return column, nil
			}
		case at < 0 && strings.TrimSpace(cells[0]) == "":
			at = slices.IndexFunc(cells, func(c string) bool { return strings.TrimSpace(c) == name })
		case at > 0 && at < len(cells) && !strings.HasPrefix(line, "|---"):
			column[strings.Trim(cells[0], " `")] = strings.Trim(cells[at], " `")
		}
	}
	if at < 0 {
		return nil, fmt.Errorf("%s has no table with a column %q", file, name)
	}
	return column, nil
}

// factsOf are the rows of the table for a process. Of its threads all have to be the same.
func factsOf(pid string) (map[string]string, error) {
	facts := map[string]string{}
	threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil || len(threads) == 0 {
		return nil, fmt.Errorf("process %s is not there", pid)
	}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			value = strings.TrimSpace(value)
			switch key {
			case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
				value = capabilities(value)
			case "NoNewPrivs", "Seccomp", "Umask":
			default:
				continue
			}
			if before, ok := facts[key]; ok && before != value {
				value = before + " and " + value
			}
			facts[key] = value
		}
	}
	for fact, look := range map[string]func(proc string) (string, error){
		"core": coreLimit, "limits": limitsOf, "environ": environment, "fd": descriptorsOf,
		"cwd":           func(proc string) (string, error) { return os.Readlink(proc + "/cwd") },
		"root":          sameAsOurs("root/", "the host's"),
		"ns/user":       sameAsOurs("ns/user", "the host's"),
		"ns/net":        sameAsOurs("ns/net", "the host's"),
		"ns/mnt":        sameAsOurs("ns/mnt", "the host's"),
		"ns/pid":        sameAsOurs("ns/pid", "the host's"),
		"oom_score_adj": spared,
		"fd is of":      ownerOf,
	} {
		if facts[fact], err = look("/proc/" + pid); err != nil {
			return nil, err
		}
	}
	return facts, nil
}

// names of capabilities that may be left (capabilities(7)).
var capabilityNames = map[int]string{
	unix.CAP_NET_ADMIN: "net_admin", unix.CAP_NET_BIND_SERVICE: "net_bind_service", unix.CAP_SYS_ADMIN: "sys_admin",
	unix.CAP_NET_RAW: "net_raw", unix.CAP_SETPCAP: "setpcap", unix.CAP_SYS_PTRACE: "sys_ptrace", unix.CAP_SYS_CHROOT: "sys_chroot",
}

func capabilities(mask string) string {
	bits, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		return mask
	}
	var names []string
	for i := range 64 {
		if bits>>i&1 == 0 {
			continue
		}
		name, ok := capabilityNames[i]
		if !ok {
			name = strconv.Itoa(i)
		}
		names = append(names, name)
	}
	if len(names) > 20 {
		return "all"
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// coreLimit is the limit of a core's size, which has to be the hard one, too (proc_pid_limits(5)).
func coreLimit(proc string) (string, error) {
	limits, err := os.ReadFile(proc + "/limits")
	for line := range strings.Lines(string(limits)) {
		if after, ok := strings.CutPrefix(line, "Max core file size"); ok {
			fields := strings.Fields(after)
			if fields[0] == fields[1] {
				return fields[0], nil
			}
			return strings.Join(fields[:2], " of "), nil
		}
	}
	return "", err
}

// limitsOf are the others that are not those of this process.
func limitsOf(proc string) (string, error) {
	theirs, err := limitsIn(proc)
	ours, err2 := limitsIn("/proc/self")
	var names []string
	for name, limit := range theirs {
		if name != "core file size" && limit != ours[name] {
			names = append(names, name)
		}
	}
	if names == nil {
		return asItsCaller, errors.Join(err, err2)
	}
	slices.Sort(names)
	return strings.Join(names, ", "), errors.Join(err, err2)
}

// limitsIn are a process's limits by their names, soft and hard (proc_pid_limits(5)).
func limitsIn(proc string) (map[string]string, error) {
	text, err := os.ReadFile(proc + "/limits")
	limits := map[string]string{}
	for line := range strings.Lines(string(text)) {
		const column = 26 // where the values begin
		if name, ok := strings.CutPrefix(line, "Max "); ok && len(line) > column {
			limits[strings.TrimSpace(name[:column-len("Max ")])] = strings.Join(strings.Fields(line[column:])[:2], " ")
		}
	}
	return limits, err
}

// environment are the names of its variables.
func environment(proc string) (string, error) {
	b, err := os.ReadFile(proc + "/environ")
	var names []string
	for _, variable := range strings.Split(strings.TrimRight(string(b), "\000"), "\000") {
		if name, _, ok := strings.Cut(variable, "="); ok {
			names = append(names, name)
		}
	}
	if names == nil {
		return "none", err
	}
	slices.Sort(names)
	return strings.Join(names, ", "), err
}

// descriptorsOf are the kinds of what it has open. Go's pollers are its own business.
func descriptorsOf(proc string) (string, error) {
	links, err := filepath.Glob(proc + "/fd/*")
	var kinds []string
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil {
			continue // closed meanwhile
		}
		kind, _, _ := strings.Cut(strings.TrimPrefix(to, "anon_inode:"), ":[")
		if i := strings.LastIndexAny(kind, "./"); i >= 0 {
			kind = kind[i+1:]
		}
		if standIn.MatchString(kind) {
			kind = "stand-in"
		}
		if kind = strings.Trim(kind, "[]"); kind != "eventpoll" && kind != "eventfd" {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return strings.Join(slices.Compact(kinds), ", "), err
}

// standIn is the name of the namespace in which plugins of a hub work.
var standIn = regexp.MustCompile("^ambi-[0-9a-f]{20}$")

func sameAsOurs(file, same string) func(proc string) (string, error) {
	return func(proc string) (string, error) {
		theirs, err := os.Stat(proc + "/" + file)
		if err != nil {
			return "", err
		}
		ours, err := os.Stat("/proc/self/" + file)
		if err == nil && os.SameFile(theirs, ours) {
			return same, nil
		}
		return "its own", err
	}
}

func spared(proc string) (string, error) {
	b, err := os.ReadFile(proc + "/oom_score_adj")
	if strings.HasPrefix(string(b), "-") {
		return "spared", err
	}
	return "not spared", err
}

// ownerOf says whose the files in /proc are, which is root where a process is not dumpable
// (PR_SET_DUMPABLE in prctl(2)): then others of its user cannot look into it.
func ownerOf(proc string) (string, error) {
	st, err := os.Stat(proc + "/fd")
	if err != nil {
		return "", err
	}
	if st.Sys().(*syscall.Stat_t).Uid == 0 {
		return "root", nil
	}
	return "its user", nil
}
