// Package snapshot writes down all of a machine that a network plugin could leave
// something behind in, as text, so that before and after can be compared: links,
// addresses, routes, rules, nftables, iptables, connection tracking, sockets, queue
// disciplines, processes, namespaces, mounts, files. What changes by itself, such as
// counters, is left out.
//
// It knows no plugin. The programs ip, tc, ss, nft, iptables-legacy-save and
// conntrack do the looking, those that are there.
package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Snapshot is a machine at one moment: a section for each kind of thing, of sorted
// lines. Two machines are the same when their snapshots are equal.
type Snapshot string

// Options says what to look at. The zero value looks at everything.
type Options struct {
	// Folders are those whose files are listed; without any, /run, /tmp, /var/lib/cni
	// and /etc/cni.
	Folders []string
	// Ignore are files and folders that are left out, with all that is in them.
	Ignore []string
	// Settled is how long it may take until nothing changes any more; zero compares
	// at once. The kernel takes a namespace apart after its last user has gone.
	Settled time.Duration
}

// look is the shell script that shows a network namespace, a section for each command.
// One shell, entered once, since a machine is looked at again and again until it is as
// it was. What the kernel says is empty is not asked for: connection tracking of a
// namespace without entries, and tables of iptables-legacy that were never made.
const look = `
show() {
	command -v "${1%% *}" >/dev/null || return 0
	printf '%s%s\n' '` + lookMark + `' "$1"
	$1 2>/dev/null || echo "error: exit status $?"
}
batch() {
	printf '%s%s\n' '` + lookMark + `' "$*"
	program=$1; shift
	printf '%s\n' "$@" | $program -batch - 2>/dev/null || echo "error: exit status $?"
}
some() { # a shell reads byte by byte, which these files end after the first
	first=
	{ read -r first <"$1"; } 2>/dev/null
	[ "${first:-0}" != 0 ]
}
batch 'ip -o' link addr
for family in -4 -6; do batch "ip $family" 'route show table all' rule 'neigh show proxy'; done
show 'nft list ruleset'
some /proc/net/ip_tables_names && show iptables-legacy-save
some /proc/net/ip6_tables_names && show ip6tables-legacy-save
some /proc/sys/net/netfilter/nf_conntrack_count && show '` + conntrack + `'
show 'ss -Hanltux'
show 'ss -Hanw'
show 'tc qdisc'
exit 0`

const conntrack = "conntrack -L"

// lookMark begins the name of a section; nft and iptables write comments with "#".
const lookMark = "\x01"

// Take looks at the machine.
func (o Options) Take() Snapshot {
	var b strings.Builder
	b.WriteString(string(Network()))
	section(&b, "named namespaces", namedNamespaces())
	procs, namespaces := processes()
	section(&b, "processes", procs)
	section(&b, "namespaces", namespaces)
	section(&b, "mounts", mounts())
	section(&b, "files", o.files())
	return Snapshot(b.String())
}

// Network looks at one network namespace: our own, or that in which a command is
// started by the arguments, such as "nsenter", "--net=/run/netns/box".
func Network(enter ...string) Snapshot {
	var b strings.Builder
	where := strings.Join(append(slices.Clone(enter), ""), " ")
	argv := append(slices.Clone(enter), "sh", "-c", look)
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	shown, names := sections(string(out), lookMark)
	for _, name := range names {
		text := strings.Join(shown[name], "")
		if name == conntrack {
			text = conversations(text)
		}
		section(&b, where+name, steady(text))
	}
	if err != nil {
		section(&b, where+"sh", fmt.Sprintf("error: %v\n", err))
	}
	return Snapshot(b.String())
}

// Difference waits until the machine is as it was, for the time that the options
// allow, and returns what differs then: the lines that are gone, with "-" before
// them, and those that are new, with "+"; nothing when it is the same.
func (o Options) Difference(before Snapshot) string {
	return Await(o.Settled, before, o.Take)
}

// Await is Difference for any way to look.
func Await(limit time.Duration, before Snapshot, take func() Snapshot) string {
	// Looking takes the processor from those who are to finish: ever less often.
	pause := 10 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(pause) {
		after := take()
		if after == before {
			return ""
		}
		if !time.Now().Before(deadline) {
			return Diff(before, after)
		}
		pause = min(2*pause, 500*time.Millisecond)
	}
}

// Diff shows the lines that are only on one side, each kind of thing under its
// name.
func Diff(before, after Snapshot) string {
	var b strings.Builder
	was, names := before.sections()
	is, more := after.sections()
	for _, name := range more {
		if _, known := was[name]; !known {
			names = append(names, name)
		}
	}
	for _, name := range names {
		lines := append(only("-", was[name], is[name]), only("+", is[name], was[name])...)
		if len(lines) > 0 {
			fmt.Fprintf(&b, "%s:\n%s", name, strings.Join(lines, ""))
		}
	}
	return b.String()
}

// only are the lines of a text, each as often as it is there, without those of
// another.
func only(sign string, text, other []string) (lines []string) {
	left := map[string]int{}
	for _, line := range other {
		left[line]++
	}
	for _, line := range text {
		if left[line]--; left[line] < 0 {
			lines = append(lines, sign+" "+line)
		}
	}
	return lines
}

const sectionMark = "# "

// section adds what there is of a kind of thing. Without any its name is left out, too:
// whether a program was asked may hang on what of its answer does not count.
func section(b *strings.Builder, name, text string) {
	if text != "" {
		b.WriteString(sectionMark + name + "\n" + text)
	}
}

func (s Snapshot) sections() (byName map[string][]string, names []string) {
	return sections(string(s), sectionMark)
}

// sections are the lines of each section of a text, and the names in order.
func sections(text, mark string) (byName map[string][]string, names []string) {
	byName = map[string][]string{}
	name := ""
	for line := range strings.Lines(text) {
		if after, is := strings.CutPrefix(line, mark); is {
			name = strings.TrimSpace(after)
			names = append(names, name)
			byName[name] = nil
			continue
		}
		byName[name] = append(byName[name], line)
	}
	return byName, names
}

// conversations are those that connection tracking remembers and that would meet
// the next owner of an address or a port: UDP and SCTP, without the seconds that
// they have left. Those of TCP and ICMP go by themselves and harm nobody.
func conversations(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) > 2 && (fields[0] == "udp" || fields[0] == "sctp") {
			kept = append(kept, strings.Join(slices.Delete(fields, 2, 3), " ")+"\n")
		}
	}
	return strings.Join(kept, "")
}

// moving is what changes by itself: packet counts, the carrier of a bridge that
// has lost its last port, the numbers that the kernel gives.
var moving = regexp.MustCompile(`packets \d+ bytes \d+|<[A-Z0-9_,-]+>|state [A-Z]+|linkdown|^\d+: |@if\d+|\(id: \d+\)|(valid|preferred)_lft \d+sec|^# .*`)

// late is what the kernel makes by itself, and some time after that which it follows from,
// on a busy machine a second: routes to addresses of IPv6, whatever is link-local.
var late = regexp.MustCompile(`fe80::|ff00::|multicast ff|^(local|anycast) [0-9a-f]*:.* proto kernel`)

// steady drops lines and columns that change by themselves, and sorts the rest.
func steady(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		line = moving.ReplaceAllString(line, "")
		if strings.TrimSpace(line) == "" || late.MatchString(line) {
			continue
		}
		kept = append(kept, strings.Join(strings.Fields(line), " ")+"\n")
	}
	slices.Sort(kept)
	return strings.Join(kept, "")
}

// processes are the command lines of all, and the namespaces that they are in. A
// namespace that outlives its processes is held by a mount (see mounts) or by a
// descriptor, and then by a process that is still there.
func processes() (commandLines, namespaces string) {
	var lines []string
	inUse := map[string]bool{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		args, _ := os.ReadFile(dir + "/cmdline")
		if err != nil || len(args) == 0 || strings.Contains(string(stat), ") Z ") {
			continue // gone, of the kernel, or waiting for its parent
		}
		lines = append(lines, strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")+"\n")
		held, _ := filepath.Glob(dir + "/ns/*")
		for _, link := range held {
			if name, err := os.Readlink(link); err == nil {
				inUse[name+"\n"] = true
			}
		}
	}
	slices.Sort(lines)
	names := make([]string, 0, len(inUse))
	for name := range inUse {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(lines, ""), strings.Join(names, "")
}

// namedNamespaces are those that ip netns knows.
func namedNamespaces() string {
	entries, _ := os.ReadDir("/run/netns")
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.Name() + "\n")
	}
	return b.String()
}

// mounts are those that can be seen. What lies below a folder that something was mounted
// on later cannot: in a namespace made from the host's it is the host's, and goes when the
// host removes the folder.
func mounts() string {
	b, _ := os.ReadFile("/proc/self/mounts")
	lines := slices.Collect(strings.Lines(string(b)))
	var seen []string
	var covered []string
	for _, line := range slices.Backward(lines) {
		fields := strings.Fields(line)
		if len(fields) < 2 || slices.ContainsFunc(covered, func(c string) bool { return strings.HasPrefix(fields[1]+"/", c) }) {
			continue
		}
		seen = append(seen, line)
		covered = append(covered, strings.TrimSuffix(fields[1], "/")+"/")
	}
	slices.Reverse(seen)
	return strings.Join(seen, "")
}

// Files is what Take has of files alone.
func (o Options) Files() Snapshot {
	var b strings.Builder
	section(&b, "files of "+strings.Join(o.Folders, ", "), o.files())
	return Snapshot(b.String())
}

// files lists what is in the folders of state, folders themselves left out. What a
// plugin has learnt about the host's programs, for the next call, is no leftover.
func (o Options) files() string {
	folders := o.Folders
	if len(folders) == 0 {
		folders = []string{"/run", "/tmp", "/var/lib/cni", "/etc/cni"}
	}
	var lines []string
	for _, root := range folders {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil
			case slices.Contains(o.Ignore, path):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case d.IsDir() || strings.HasSuffix(path, ".cache") || strings.HasPrefix(path, "/run/netns/"):
				return nil // ip netns lists the last, and does so while they go
			}
			lines = append(lines, path+"\n")
			return nil
		})
	}
	return strings.Join(lines, "")
}

// Save writes the snapshot to a file.
func (s Snapshot) Save(file string) error { return os.WriteFile(file, []byte(s), 0o600) }

// ErrChanged is what Unchanged returns for a machine that is not as it was.
var ErrChanged = errors.New("the machine has changed (- before, + now)")

// Unchanged compares the machine with the snapshot in a file; ErrChanged is
// wrapped with what differs.
func (o Options) Unchanged(file string) error {
	before, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if difference := o.Difference(Snapshot(before)); difference != "" {
		return fmt.Errorf("%w:\n%s", ErrChanged, difference)
	}
	return nil
}
