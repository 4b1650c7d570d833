package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

func delRemovesAll(l *lab) {
	l.warm()
	a := l.newAttachment(withPorts)
	before := l.snapshot(a.container)
	a.mustAdd()
	a.mustDel()
	l.unchanged(before, "after DEL", a.container)
}

func repeatedDEL(l *lab) {
	a := l.attach(withPorts)
	a.mustDel()
	for range 2 {
		if o := a.call("DEL"); !o.ok() {
			l.fail("the repeated one: %s", o)
		}
	}
	a.finish()
	a.container.destroy()
	for _, e := range [][]edit{nil, {noKey("prevResult")}, {env("CNI_NETNS", "")}} {
		if o := a.call("DEL", e...); !o.ok() {
			l.fail("the repeated one, the namespace being gone: %s", o)
		}
	}
}

func delOfNeverAdded(l *lab) {
	a := l.newAttachment(withPorts)
	l.succeeds(a.call("DEL"))
	l.succeeds(a.call("DEL", noKey("prevResult")))
	l.succeeds(a.call("DEL", env("CNI_NETNS", "")))
	l.succeeds(a.call("DEL", env("CNI_CONTAINERID", "another")))
}

// lateDel is DEL after the namespace has gone.
func (l *lab) lateDel(when string, edits ...edit) {
	l.warm()
	before := l.snapshot()
	a := l.attach(withPorts)
	a.container.destroy()
	a.mustDel(edits...)
	a.mustDel(edits...)
	a.finish()
	l.unchanged(before, when)
}

func delWithEmptyNetns(l *lab) { l.lateDel("after DEL with an empty CNI_NETNS", env("CNI_NETNS", "")) }

func delWithGoneNetns(l *lab) { l.lateDel("after DEL with a CNI_NETNS that is gone") }

// delWithForeignNetns has the path of the namespace lead to that of another container.
func delWithForeignNetns(l *lab) {
	c := l.newContainer()
	path := l.mountNamespace(c)
	a := l.newAttachment(withContainer(c), withNetns(path), withPorts)
	a.mustAdd()
	other := l.newContainer()
	there := l.stranger(other, a.ifName)
	l.must(unix.Unmount(path, unix.MNT_DETACH))
	l.must(unix.Mount(other.path, path, "", unix.MS_BIND, ""))
	o := a.call("DEL")
	link := l.link(other, a.ifName)
	if link == nil || link.Attrs().Index != there.Attrs().Index {
		l.fail("it removed the interface %s of another container (%s)", a.ifName, o)
	}
	l.succeeds(o)
}

func delWithoutPrevResult(l *lab) {
	l.warm()
	a := l.newAttachment(withPorts)
	before := l.snapshot(a.container)
	a.mustAdd()
	a.mustDel(noKey("prevResult"))
	l.unchanged(before, "after DEL without prevResult", a.container)
}

func delAfterFailedADD(l *lab) {
	l.warm()
	unprintable, done := unprinted(l)
	defer done()
	for _, e := range [][]edit{
		{unprintable},
		{stdin([]byte("{"))},
		{env("CNI_NETNS", stage+"/no/such/namespace")},
	} {
		a := l.newAttachment(withPorts)
		before := l.snapshot(a.container)
		o := a.call("ADD", e...)
		if o.ok() {
			l.saw("%s, although it was to fail", o)
		}
		a.mustDel()
		l.unchanged(before, "after an ADD that failed, and DEL,", a.container)
		a.finish()
	}
	if l.job.DelegateKey != "" {
		a := l.delegate(script{script: scripted.Script{Fail: map[string]uint{"ADD": 123}, Late: true}}).attachment()
		before := l.snapshot(a.container)
		l.expect(a.add(), 123)
		a.mustDel()
		l.unchanged(before, "after an ADD that a delegate failed, and DEL,", a.container)
	}
}

func delInReverseOrder(l *lab) {
	d := l.delegate(script{}, script{kind: "delegate-b"}, script{kind: "delegate-c"})
	a := d.attachment()
	a.mustAdd()
	a.mustDel()
	added, deleted := namesOf(d.calls("ADD")), namesOf(d.calls("DEL"))
	slices.Reverse(deleted)
	if !slices.Equal(added, deleted) || len(added) != 3 {
		l.fail("ADD called %v, and DEL, read backwards, %v", added, deleted)
	}
	l.saw("DEL of %v, in reverse", added)
}

func namesOf(calls []delegateCall) []string {
	var names []string
	for _, c := range calls {
		names = append(names, c.Name)
	}
	return names
}

func delHasFinalResult(l *lab) {
	scripts := []script{{}}
	if l.job.DelegateKey != "" && !l.isOne() {
		scripts = []script{{}, {kind: "delegate-b"}}
	}
	d := l.delegate(scripts...)
	a := d.attachment()
	a.mustAdd()
	a.mustDel()
	calls := d.calls("DEL")
	if len(calls) != len(scripts) {
		l.fail("%d of %d delegates got DEL", len(calls), len(scripts))
	}
	for _, c := range calls {
		if !sameResult(l, c.conf()["prevResult"], a.result) {
			l.fail("%s got the prevResult %s, and the result of ADD was %s", c.Name, short(c.conf()["prevResult"]), short(a.result))
		}
	}
}

func sameResult(l *lab, a, b json.RawMessage) bool {
	return len(a) > 0 && reflect.DeepEqual(l.read(a), l.read(b))
}

func delWithEditedConf(l *lab) {
	l.warm()
	a := l.newAttachment(withPorts)
	before := l.snapshot(a.container)
	a.mustAdd()
	edited := object{}.with("cniVersion", a.version).with("name", l.network.name).with("type", l.job.Type)
	a.mustDel(func(r *request) { r.conf = edited })
	l.unchanged(before, "after DEL with a configuration of cniVersion, name and type only", a.container)
}

func delWithoutDelegate(l *lab) {
	dir := l.folder("removable", "delegate-removable")
	scripts := []script{{kind: "delegate-removable"}}
	if l.job.DelegateKey != "" && !l.isOne() {
		scripts = []script{{}, {kind: "delegate-removable"}, {kind: "delegate-b"}}
	}
	d := l.delegate(scripts...)
	a := d.attachment()
	path := env("CNI_PATH", dir+":"+l.machine.path)
	a.mustAdd(path)
	l.must(os.Remove(dir + "/delegate-removable"))
	o := a.call("DEL", path)
	l.fails(o, "without the delegate's binary:")
	if !o.says("delegate-removable") {
		l.fail("the message does not name the delegate: %s", o)
	}
	if deleted := namesOf(d.calls("DEL")); len(deleted) != len(scripts)-1 {
		l.fail("of the other delegates %v were undone", deleted)
	}
	l.saw("%s", o)
}

// stateFiles are the regular files that are new since before and have something in
// them.
func (l *lab) stateFiles(before map[string]bool) []string {
	var files []string
	for path := range allFiles() {
		if info, err := os.Lstat(path); err == nil && !before[path] && info.Mode().IsRegular() && info.Size() > 0 {
			files = append(files, path)
		}
	}
	return files
}

func allFiles() map[string]bool {
	files := map[string]bool{}
	for _, root := range []string{"/run", "/tmp", "/var/lib/cni"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case path == stage:
				return fs.SkipDir
			case err == nil && d.Type().IsRegular():
				files[path] = true
			}
			return nil
		})
	}
	return files
}

func delWithDamagedState(l *lab) {
	l.warm()
	for _, text := range []string{"", "{", "\x00\x00\x00\x00"} {
		a := l.newAttachment(withPorts)
		before := l.snapshot(a.container)
		known := allFiles()
		a.mustAdd()
		files := l.stateFiles(known)
		if len(files) == 0 {
			l.inapplicable("the plugin keeps no state in files")
		}
		for _, path := range files {
			l.must(os.WriteFile(path, []byte(text), 0o600))
		}
		o := a.call("DEL")
		if !o.ok() {
			l.fail("with %q in %v: %s", text, files, o)
		}
		l.unchanged(before, fmt.Sprintf("after DEL with %q in %s", text, strings.Join(files, ", ")), a.container)
		a.finish()
		a.container.destroy()
	}
}

func lateDELSparesNext(l *lab) {
	first := l.attach(withPorts)
	ports := first.runtimeConfig
	ips := first.own()
	first.takeDown()
	options := []option{withRuntime(ports)}
	if len(ips) > 0 {
		options = append(options, withArgs("IgnoreUnknown=1;IP="+ips[0].Address.IP.String()))
	}
	second := l.attach(options...)
	same := len(ips) > 0 && slices.ContainsFunc(second.own(), func(ip *ipConfig100) bool { return ip.Address.IP.Equal(ips[0].Address.IP) })
	if !same && ports == nil {
		l.inapplicable("the plugin gave the second container another address, and there are no ports")
	}
	before := l.snapshot(second.container)
	first.mustDel()
	l.unchanged(before, "after a late DEL of the container that had the address and port before", second.container)
	if second.version >= "0.4.0" {
		if e := second.checked(); e != nil {
			l.fail("after the late DEL the second attachment is not in order: %v", e)
		}
	}
	l.saw("the same address: %v, the same ports: %v", same, ports != nil)
}

func delPrintsNothing(l *lab) {
	a := l.attach(withPorts)
	for _, what := range []string{"DEL", "the repeated DEL"} {
		o := a.call("DEL")
		l.succeeds(o)
		if len(o.stdout) > 0 {
			l.fail("%s printed %s", what, short(o.stdout))
		}
	}
}

func delWithoutRuntimeConfig(l *lab) {
	l.needsPorts()
	l.warm()
	a := l.newAttachment(withPorts)
	before := l.snapshot(a.container)
	a.mustAdd()
	a.mustDel(noKey("runtimeConfig"))
	l.unchanged(before, "after DEL without runtimeConfig", a.container)
}

// pids are the processes that run.
func pids() map[int]bool {
	all := map[int]bool{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && alive(pid) {
			all[pid] = true
		}
	}
	return all
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ") && !strings.Contains(string(stat), ") X ")
}

// helpers are the processes that ADD of the attachment left running.
func (a *attachment) helpers() []int {
	a.strangers = pids()
	a.mustAdd()
	return a.left()
}

func (a *attachment) left() (left []int) {
	for pid := range pids() {
		if !a.strangers[pid] {
			left = append(left, pid)
		}
	}
	slices.Sort(left)
	return left
}

// killHelpers ends all helpers at one moment: of two that start each other again, neither
// may run while the other ends. What ADD has begun and not yet started is one of them.
func (a *attachment) killHelpers() (left []int) {
	if !waitUntil(func() bool {
		left = a.left()
		kill(left, unix.SIGSTOP)
		return !slices.ContainsFunc(left, running) && slices.Equal(left, a.left())
	}) {
		a.l.broken("the processes of ADD cannot be stopped")
	}
	kill(left, unix.SIGKILL)
	a.l.allGone(left, "after SIGKILL")
	return left
}

// running: a thread of it has not been stopped.
func running(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return slices.ContainsFunc(stats, func(file string) bool {
		stat, err := os.ReadFile(file)
		state := bytes.LastIndexByte(stat, ')') + 2
		return err == nil && state < len(stat) && !bytes.ContainsRune([]byte("TtZX"), rune(stat[state]))
	})
}

// needsHelpers is an attachment with the processes that it left.
func (l *lab) needsHelpers() (*attachment, []int) {
	a := l.newAttachment(withPorts)
	left := a.helpers()
	if len(left) == 0 {
		l.inapplicable("ADD leaves no process")
	}
	return a, left
}

func (l *lab) allGone(pids []int, when string) {
	if !waitUntil(func() bool { return !slices.ContainsFunc(pids, alive) }) {
		l.fail("%s a process of ADD still runs", when)
	}
}

func kill(pids []int, signal unix.Signal) {
	for _, pid := range pids {
		_ = unix.Kill(pid, signal)
	}
}

func delEndsProcesses(l *lab) {
	a, left := l.needsHelpers()
	a.mustDel()
	if slices.ContainsFunc(left, alive) {
		l.fail("when DEL has ended, a process of ADD still runs")
	}
	a.finish()
	a.container.destroy()
	a, _ = l.needsHelpers()
	left = a.killHelpers()
	strangers := l.takeNumbers(left)
	a.mustDel()
	for _, pid := range strangers {
		if !alive(pid) {
			l.fail("DEL ended a stranger that had the number of a process of ADD")
		}
	}
	l.saw("%d processes; %d strangers with their numbers were left alone", len(left), len(strangers))
}

// takeNumbers starts processes of the plugin's user that have these numbers, as the
// kernel may any day.
func (l *lab) takeNumbers(wanted []int) (taken []int) {
	for _, pid := range wanted {
		if !waitUntil(func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); return err != nil }) {
			continue // not reaped yet; then nobody can have its number
		}
		l.must(os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0))
		cmd := l.start(nil, "sleep", "infinity")
		if cmd.Process.Pid == pid {
			taken = append(taken, pid)
		}
	}
	if len(taken) == 0 {
		l.broken("no process could be started with a number that was free again")
	}
	return taken
}

func sigtermDuringDEL(l *lab) {
	l.warm()
	took := l.duration("DEL")
	before := l.snapshot()
	const moments = 6
	ignored := 0
	for n := range moments {
		a := l.attach(withPorts)
		o := a.call("DEL", func(r *request) {
			r.during = func(p *os.Process) {
				time.Sleep(took * time.Duration(2*n+1) / (2 * moments))
				_ = p.Signal(unix.SIGTERM)
			}
		})
		if o.ok() {
			ignored++
		}
		if o := a.call("DEL"); !o.ok() {
			l.fail("after a SIGTERM at moment %d of %d: %s", n+1, moments, o)
		}
		a.finish()
		a.container.destroy()
		l.unchanged(before, fmt.Sprintf("after a DEL that got SIGTERM at moment %d of %d, and another DEL,", n+1, moments))
	}
	l.saw("%d of %d DELs finished in spite of it", ignored, moments)
}
