package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ambi-cni/ambi/e2e/fault/inject"
	"github.com/ambi-cni/ambi/e2e/lab"
	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// settled is how long the kernel may take to take things apart: it only ends the wait
// for what never goes.
const settled = 2 * time.Minute

// glance is how long is waited for what may well stay, and is then cleaned up.
const glance = 3 * time.Second

// box is the container that the verbs are about. It lives as long as the machine.
type box struct {
	*lab.Container
	id      string
	mate    *box          // of a shared network: another one, that may be in it, too
	hub     bool          // the network is shared, and has namespaces of its own
	config  string        // members of the configuration beside cniVersion, name and type
	settled time.Duration // how long what is left may take to go
	added   string        // what the last ADD printed when it succeeded
}

// limits, and IPv6 beside IPv4, are what the built-in network can leave beyond a pair of
// interfaces and elements of the firewall's sets.
const builtIn = `"capabilities":{"portMappings":true,"bandwidth":true},"bridge":{"subnet":"10.1.0.0/24","subnet6":"fd01::/64"},
 "runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":8000000,"egressBurst":800000},` + mappings + `}`

const ports = `"capabilities":{"portMappings":true},"runtimeConfig":{` + mappings + `}`

// shared is a network that users' containers share, for the built-in network or a chain.
const shared = `,"rootless":{"network":"shared"}`

// private is a network that each of them has for itself.
const private = `,"rootless":{"network":"private"}`

const mappings = `"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":5353,"containerPort":53,"protocol":"udp"}]`

// chain is what delegates can leave: links, addresses, routes, rules of iptables,
// sysctls, files of IPAM.
const chain = `,"delegates":[
 {"type":"bridge","bridge":"own0","isGateway":true,"ipMasq":true,"ipMasqBackend":"iptables","hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"/run/own","ranges":[[{"subnet":"10.1.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"firewall"},
 {"type":"tuning","mtu":1400}]`

// configs are the members of the configuration of each mode.
var configs = map[string]string{
	"root": ports + chain, "built-in": builtIn, "rootless": ports + private,
	"shared": builtIn + shared, "shared-plugins": ports + shared + chain,
}

// rootless says whether a user calls the plugin.
func rootless(mode string) bool { return mode != "root" && mode != "built-in" }

func newBox(mode string, patience time.Duration) (*box, error) {
	b, err := makeBox("box", mode, patience)
	if err != nil || !strings.HasPrefix(mode, "shared") {
		return b, err
	}
	b.hub = true
	if b.mate, err = makeBox("mate", mode, patience); err != nil {
		return nil, err
	}
	b.mate.config = strings.NewReplacer("8080", "8081", "5353", "5354").Replace(b.config)
	return b, nil
}

func makeBox(id, mode string, patience time.Duration) (*box, error) {
	b := &box{id: id, config: configs[mode], settled: cmp.Or(patience, settled)}
	var err error
	b.Container, err = lab.NewContainer(id, rootless(mode))
	return b, err
}

var mountNamespace = regexp.MustCompile(`(?m)^mnt:\[\d+\]\n`)

// everything is the machine, the inside of the containers and that of their hub.
func (b *box) everything() snapshot.Snapshot {
	machine := snapshot.Options{Ignore: []string{lab.Stage}}
	all := machine.Take() + snapshot.Network(b.Enter...)
	if !b.hub {
		return all
	}
	// A driver that was started again beside another container has new ones.
	all = snapshot.Snapshot(mountNamespace.ReplaceAllString(string(all), "")) + snapshot.Network(b.mate.Enter...)
	for _, thread := range threadsElsewhere() {
		ns := thread + "/ns/"
		all += named("hub", snapshot.Network("nsenter", "--user="+ns+"user", "--net="+ns+"net"), ns)
		if elsewhere(thread, "mnt") {
			inside := snapshot.Options{Folders: []string{thread + "/root/run"}, Ignore: []string{thread + "/root/run/.host"}}
			all += named("hub", inside.Files(), thread)
		}
	}
	return all
}

// named gives the numbers of a process, which are others the next time, a name.
func named(name string, s snapshot.Snapshot, what string) snapshot.Snapshot {
	return snapshot.Snapshot(strings.ReplaceAll(string(s), what, name))
}

// threadsElsewhere are the threads of supervisors that are in the namespaces of a hub, as
// their folders in /proc.
func threadsElsewhere() (threads []string) {
	for _, pid := range daemons() {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, task := range tasks {
			if inject.RoleOf(pid) == "supervisor" && elsewhere(task, "net") {
				threads = append(threads, task)
				break // they are all in the same one
			}
		}
	}
	return threads
}

func elsewhere(task, kind string) bool {
	its, err := os.Readlink(task + "/ns/" + kind)
	ours, _ := os.Readlink("/proc/self/ns/" + kind)
	return err == nil && its != ours
}

// result is what a verb did.
type result struct {
	*lab.Result
	report *inject.Report // of a traced one
}

// prepare is a verb, not started.
func (b *box) prepare(verb string) *exec.Cmd {
	config := `{"cniVersion":"1.1.0","name":"own","type":"ambi",` + b.config
	switch {
	case verb == "GC":
		// The mate is never among those to be removed.
		config += `,"cni.dev/valid-attachments":[{"containerID":"mate","ifname":"eth0"}]`
	case verb != "ADD" && b.added != "":
		config += `,"prevResult":` + b.added
	}
	return lab.Verb{Name: verb, ContainerID: b.id, IfName: "eth0", Netns: b.Netns, Config: config + "}", UID: b.UID}.Command()
}

// verb calls the plugin.
func (b *box) verb(verb string) (*result, error) { return b.run(verb, b.prepare(verb), nil) }

// run runs a prepared verb; during, when given, does something to it meanwhile.
func (b *box) run(verb string, cmd *exec.Cmd, during func(pid int)) (*result, error) {
	r, err := lab.Run(cmd, during)
	if err == nil {
		b.note(verb, r)
	}
	return &result{Result: r}, err
}

// note remembers the result that CHECK and DEL get to see, as a runtime does.
func (b *box) note(verb string, r *lab.Result) {
	switch {
	case verb == "ADD" && r.Exit == 0:
		b.added = r.Out
	case verb == "ADD":
		b.added = ""
	}
}

// traced calls the plugin and counts its system calls, or has a fault happen. The
// supervisor of a running attachment is traced, too.
func (b *box) traced(verb string, fault *inject.Fault) (*result, error) {
	const report = lab.Stage + "/report"
	_ = os.Remove(report)
	what, err := json.Marshal(fault)
	if err != nil {
		return nil, err
	}
	pids, err := json.Marshal(daemons())
	if err != nil {
		return nil, err
	}
	cmd := b.prepare(verb)
	cmd.Args = []string{os.Args[0], "trace", report, strconv.Itoa(b.UID), string(what), string(pids), cmd.Path}
	cmd.Path = "/proc/self/exe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ran, err := lab.Run(cmd, nil)
	r := &result{Result: ran}
	if err != nil {
		return r, err
	}
	text, err := os.ReadFile(report)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("the tracer failed: %s", r.Stderr)
	}
	if err == nil {
		err = json.Unmarshal(text, &r.report)
	}
	if err == nil {
		r.Exit = r.report.Exit
		b.note(verb, r.Result)
	}
	return r, err
}

// daemons are the processes that an attachment leaves running. An empty list, and
// not null, when there are none.
func daemons() []int {
	pids := []int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if role := inject.RoleOf(pid); role == "supervisor" || role == "keeper" || role == "slirp4netns" {
			pids = append(pids, pid)
		}
	}
	return pids
}
