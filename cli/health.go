package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/root"
	"github.com/ambi-cni/ambi/rootless"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// state says in a word how an attachment is.
type state string

const (
	stateUp     state = "up"     // everything that was looked at is in place
	stateBusy   state = "busy"   // a CNI verb is at work on it
	stateBroken state = "broken" // something is missing; see the problems
)

// problem is one thing that is wrong with an attachment.
type problem struct {
	Code   problemCode `json:"code"`
	Text   string      `json:"text"`
	Remedy string      `json:"remedy"`
}

// problemCode names a kind of problem, for programs.
type problemCode string

const (
	recordUnreadable problemCode = "record-unreadable"
	unfinished       problemCode = "unfinished"      // an ADD or DEL that was killed or failed half way
	namespaceGone    problemCode = "namespace-gone"  // nothing is left to be attached
	supervisorGone   problemCode = "supervisor-gone" // rootless
	supervisorMute   problemCode = "supervisor-mute" // rootless: it runs and does not answer
	driverDown       problemCode = "driver-down"     // rootless: what carries what goes out is being restarted
	rulesMissing     problemCode = "rules-missing"   // root: published ports are not in the firewall
	nameServerGone   problemCode = "nameserver-gone" // root: containers find nobody by name
	interfaceMissing problemCode = "interface-missing"
	resultMismatch   problemCode = "result-mismatch" // the record does not tell of this interface
	checkFailed      problemCode = "check-failed"    // what the supervisor found when it looked
)

// words are the problems as the table shows them.
var words = map[problemCode]string{
	recordUnreadable: "record unreadable", unfinished: "unfinished", namespaceGone: "namespace gone",
	supervisorGone: "supervisor gone", supervisorMute: "supervisor mute", driverDown: "driver down", rulesMissing: "rules gone", nameServerGone: "no names",
	interfaceMissing: "interface gone", resultMismatch: "no result", checkFailed: "check failed",
}

// health is what was found of an attachment.
type health struct {
	state    state
	problems []problem
	status   *supervisor.Status // rootless, of a supervisor that answers
}

// word is the state for a table.
func (h *health) word() (string, style) {
	switch {
	case len(h.problems) > 0:
		return words[h.problems[0].Code], red
	case h.state == stateBusy:
		return string(h.state), yellow
	}
	return string(h.state), green
}

// dead says whether ambi gc would take the attachment.
func (h *health) dead() bool {
	for _, p := range h.problems {
		switch p.Code {
		case unfinished, namespaceGone, supervisorGone:
			return true
		}
	}
	return false
}

func (h *health) wrong(code problemCode, remedy, format string, args ...any) {
	h.state = stateBroken
	h.problems = append(h.problems, problem{code, fmt.Sprintf(format, args...), remedy})
}

// look finds out how the attachment is. It changes nothing.
func (t *attachment) look(ctx context.Context) {
	t.health = health{state: stateUp}
	switch {
	case t.record == nil:
		t.wrong(recordUnreadable, delCommand(t), "its record %s cannot be read", t.store.Path(t.Key, "json"))
		return
	case t.record.State != record.Ready:
		if t.store.Busy(t.Key) {
			t.state = stateBusy
			return
		}
		t.wrong(unfinished, t.app.command("gc"), "an ADD or DEL was begun and did not finish")
	}
	if t.record.Netns.Gone() {
		t.wrong(namespaceGone, t.app.command("gc"), "its namespace %s is gone", t.record.Netns.Path)
		return // and everything in it
	}
	if t.rootless() {
		t.lookAtSupervisor()
	} else {
		t.lookAtRules(ctx)
	}
	if noServer(t.store, t.record) {
		t.wrong(nameServerGone, t.app.command("restore"), "the name server of the network has ended, so its containers find nobody by name, nor anything else if they ask it alone")
	}
}

// lookAll looks at many at a time: a supervisor that does not answer is waited for.
func lookAll(ctx context.Context, all []*attachment, look func(*attachment, context.Context)) {
	const atATime = 16
	var wg sync.WaitGroup
	turns := make(chan struct{}, atATime)
	for _, t := range all {
		turns <- struct{}{}
		wg.Go(func() {
			look(t, ctx)
			<-turns
		})
	}
	wg.Wait()
}

func (t *attachment) network() *rootless.Network {
	return &rootless.Network{Store: t.store, Record: t.record}
}

// shared says whether it is a member of a shared network's hub.
func (t *attachment) shared() bool {
	return t.record.Hub != "" && !hub.Hub{Name: t.record.Hub}.Private()
}

func (t *attachment) lookAtSupervisor() {
	if !rootless.Alive(t.store, t.record) {
		if t.record.Supervisor != nil {
			what := "its supervisor"
			if t.shared() {
				what = "the supervisor of its hub"
			}
			t.wrong(supervisorGone, t.app.command("gc"), "%s is gone, so the container has no network", what)
		}
		return // never there: the ADD did not get that far
	}
	var err error
	if t.status, err = t.network().Status(); err != nil {
		t.wrong(supervisorMute, cmp.Or(conf.Remedy(err), t.killing()), "%s", t.trimmed(err))
		return
	}
	if t.status.Driver.PID == 0 {
		t.wrong(driverDown, t.app.command("logs "+t.String()), "%s", strings.TrimSuffix(t.status.Driver.Name+" is down and being restarted: "+t.status.Driver.Error, ": "))
	}
}

// killing ends a supervisor that does not answer. Its keeper starts another.
func (t *attachment) killing() string {
	if pid := t.network().Supervisor(); pid != 0 {
		return fmt.Sprintf("kill -9 %d && %s", pid, t.app.command("gc"))
	}
	return t.app.command("gc")
}

// lookAtRules compares the published ports with the kernel.
func (t *attachment) lookAtRules(ctx context.Context) {
	if t.record.Published == nil || len(t.record.Ports) == 0 {
		return
	}
	backend, err := nat.Open(t.record.Published.Backend)
	if err == nil {
		err = backend.Check(ctx, root.Published(t.record))
	}
	if err != nil {
		t.wrong(rulesMissing, t.app.command("restore"), "%s", conf.Message(err))
	}
}

// lookInside is what only inspect looks at: the interface itself.
func (t *attachment) lookInside(ctx context.Context) {
	if t.record != nil && t.record.State == record.Ready && !t.tells() {
		t.wrong(resultMismatch, "", "its record has no result of ADD for interface %s", t.IfName)
	}
	switch {
	case t.record == nil || t.state == stateBusy || t.record.Netns.Gone():
	case t.rootless():
		t.askSupervisor(ctx)
	default:
		if _, err := linkOf(t); err != nil {
			t.wrong(interfaceMissing, "", "%v", err)
		}
	}
}

// tells says whether the result of ADD is about this interface. One of before 0.3.0
// names none.
func (t *attachment) tells() bool {
	return t.result != nil && (len(t.result.Interfaces) == 0 || conf.InterfaceOf(t.result, t.IfName) != nil)
}

func (t *attachment) askSupervisor(ctx context.Context) {
	a, err := t.record.Attachment()
	if err != nil || t.status == nil || t.status.Driver.PID == 0 {
		return
	}
	if err := t.network().Check(ctx, a); err != nil {
		t.wrong(checkFailed, conf.Remedy(err), "%s", t.trimmed(err))
	}
}

// trimmed is the text of an error without the name that everybody sees already.
func (t *attachment) trimmed(err error) string {
	return strings.TrimPrefix(conf.Message(err), "attachment "+t.String()+": ")
}

// delCommand takes an attachment down without a record.
func delCommand(t *attachment) string {
	config, _ := json.Marshal(map[string]string{"cniVersion": "1.0.0", "name": t.Network, "type": "ambi", "stateDir": t.store.Dir()}) // texts never fail
	return fmt.Sprintf("echo %s | CNI_COMMAND=DEL CNI_CONTAINERID=%s CNI_IFNAME=%s CNI_PATH=%s %s",
		quoted(string(config)), quoted(t.ContainerID), quoted(t.IfName), quoted(cniPath()), quoted(self()))
}
