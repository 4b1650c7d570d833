package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ambi-cni/ambi/e2e/fault/inject"
	"github.com/ambi-cni/ambi/e2e/lab"
	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// patience bounds a verb. One that takes longer hangs.
const patience = time.Minute

// settled is how long the kernel may take to take things apart.
const settled = 3 * time.Second

// box is the container that the verbs are about. It lives as long as the machine.
type box struct {
	mode   string
	uid    int
	netns  string
	enter  []string // the command that enters it
	config string   // members of the configuration beside cniVersion, name and type
	added  string   // what the last ADD printed when it succeeded
}

const ports = `"capabilities":{"portMappings":true},"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":5353,"containerPort":53,"protocol":"udp"}]}`

// chain is what delegates can leave: links, addresses, routes, rules of iptables,
// sysctls, files of IPAM.
const chain = `,"delegates":[
 {"type":"bridge","bridge":"own0","isGateway":true,"ipMasq":true,"ipMasqBackend":"iptables","hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"/run/own","ranges":[[{"subnet":"10.1.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"firewall"},
 {"type":"tuning","mtu":1400}]`

func newBox(mode string) (*box, error) {
	if mode == "root" {
		out, err := exec.Command("sh", "-ec", "ip netns add box; ip -n box link set lo up").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("making the container: %w: %s", err, out)
		}
		return &box{mode: mode, netns: "/run/netns/box", enter: []string{"nsenter", "--net=/run/netns/box"}, config: ports + chain}, nil
	}
	sleep := exec.Command("unshare", "-Urn", "sh", "-c", "ip link set lo up; exec sleep infinity")
	sleep.SysProcAttr = as(lab.UID)
	if err := sleep.Start(); err != nil {
		return nil, fmt.Errorf("making the container: %w", err)
	}
	pid := strconv.Itoa(sleep.Process.Pid)
	for deadline := time.Now().Add(patience); inject.RoleOf(sleep.Process.Pid) != "sleep"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, errors.New("making the container: unshare does not become sleep")
		}
	}
	proc := "/proc/" + pid + "/ns/"
	return &box{mode: mode, uid: lab.UID, netns: proc + "net", enter: []string{"nsenter", "--net=" + proc + "net", "--user=" + proc + "user"}, config: ports}, nil
}

func as(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Setpgid: true}
}

// everything is the machine and the inside of the container.
func (b *box) everything() snapshot.Snapshot {
	machine := snapshot.Options{Ignore: []string{lab.Stage}}
	return machine.Take() + snapshot.Network(b.enter...)
}

// result is what a verb did.
type result struct {
	exit   int // 128 + the signal that ended it
	out    string
	stderr string
	report *inject.Report // of a traced one
}

var errHangs = errors.New("hangs")

// prepare is a verb, not started.
func (b *box) prepare(verb string) *exec.Cmd {
	config := `{"cniVersion":"1.1.0","name":"own","type":"ambi",` + b.config
	switch {
	case verb == "GC":
		config += `,"cni.dev/valid-attachments":[]`
	case verb != "ADD" && b.added != "":
		config += `,"prevResult":` + b.added
	}
	cmd := exec.Command(lab.Stage + "/bin/ambi")
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=box", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.netns, "CNI_PATH=" + lab.Stage + "/plugins", "PATH=" + os.Getenv("PATH"),
	}
	if b.uid != 0 {
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+lab.RuntimeDir)
	}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(config + "}")
	return cmd
}

// verb calls the plugin.
func (b *box) verb(verb string) (*result, error) {
	cmd := b.prepare(verb)
	cmd.SysProcAttr = as(b.uid)
	r, err := b.run(cmd, nil)
	b.note(verb, r)
	return r, err
}

// note remembers the result that CHECK and DEL get to see, as a runtime does.
func (b *box) note(verb string, r *result) {
	switch {
	case verb == "ADD" && r != nil && r.exit == 0:
		b.added = r.out
	case verb == "ADD":
		b.added = ""
	}
}

// run runs a prepared verb; during, when given, does something to it meanwhile.
func (b *box) run(cmd *exec.Cmd, during func(pid int)) (*result, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	// A daemon that holds our pipes would look like a verb that does not end.
	cmd.WaitDelay = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if during != nil {
		during(cmd.Process.Pid)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	stop()
	r := &result{out: out.String(), stderr: stderr.String(), exit: cmd.ProcessState.ExitCode()}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		r.exit = 128 + int(status.Signal())
	}
	if ctx.Err() != nil {
		return r, fmt.Errorf("%w: not finished within %s: %s", errHangs, patience, r.stderr)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return r, fmt.Errorf("%w: somebody holds its standard output", errHangs)
	}
	return r, nil
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
	cmd.Args = []string{os.Args[0], "trace", report, strconv.Itoa(b.uid), string(what), string(pids), cmd.Path}
	cmd.Path = "/proc/self/exe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, err := b.run(cmd, nil)
	if err != nil {
		return r, err
	}
	text, err := os.ReadFile(report)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("the tracer failed: %s", r.stderr)
	}
	if err == nil {
		err = json.Unmarshal(text, &r.report)
	}
	if err == nil {
		r.exit = r.report.Exit
		b.note(verb, r)
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
		if role := inject.RoleOf(pid); role == "supervisor" || role == "slirp4netns" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// saidError is the error that a verb printed; nil when it has not ended by itself.
func (r *result) saidError() (msg string, said bool) {
	var e struct {
		Code    int    `json:"code"`
		Msg     string `json:"msg"`
		Details string `json:"details"`
	}
	if r.exit == 0 || json.Unmarshal([]byte(r.out), &e) != nil || e.Msg == "" {
		return "", false
	}
	return strings.TrimSuffix(fmt.Sprintf("%d: %s; %s", e.Code, e.Msg, e.Details), "; "), true
}
