package suite

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// attachment is one container interface of the network, as a runtime keeps it.
type attachment struct {
	l             *lab
	id, ifName    string
	container     *container
	netns         string // CNI_NETNS
	version       string
	conf          object // the plugin's entry
	cniArgs       string
	runtimeConfig object

	prev   json.RawMessage // result of the plugin before this one; nil for the first
	result json.RawMessage // of ADD

	strangers map[int]bool // the processes that there were before ADD; see helpers
}

// option changes an attachment before the plugins before this one are run.
type option func(*attachment)

func withPorts(a *attachment)           { a.runtimeConfig = a.l.freshPorts() }
func withRuntime(config object) option  { return func(a *attachment) { a.runtimeConfig = config } }
func withVersion(version string) option { return func(a *attachment) { a.version = version } }
func withConf(conf object) option       { return func(a *attachment) { a.conf = conf } }
func withIfName(name string) option     { return func(a *attachment) { a.ifName = name } }
func withArgs(args string) option       { return func(a *attachment) { a.cniArgs = args } }
func withContainer(c *container) option { return func(a *attachment) { a.container = c } }
func withID(id string) option           { return func(a *attachment) { a.id = id } }
func withNetns(path string) option      { return func(a *attachment) { a.netns = path } }
func withKey(name string, value any) option {
	return func(a *attachment) { a.conf = a.conf.with(name, value) }
}

// newAttachment is an attachment that the plugins before this one have been ADDed to.
func (l *lab) newAttachment(options ...option) *attachment {
	a := &attachment{l: l, ifName: "eth0", version: l.network.version, conf: l.network.subject}
	for _, o := range options {
		o(a)
	}
	if a.container == nil {
		a.container = l.newContainer()
	}
	if a.netns == "" {
		a.netns = a.container.path
	}
	if a.id == "" {
		a.id = fmt.Sprintf("conformance-%d", l.containers)
	}
	for _, entry := range l.network.before {
		o := a.callOf(entry, "ADD", a.prev)
		if !o.ok() {
			l.broken("the plugin before this one, %s: %s", entry.text("type"), o)
		}
		a.prev = o.stdout
	}
	return a
}

// callOf makes a call of a plugin before this one.
func (a *attachment) callOf(entry object, verb string, prev json.RawMessage) outcome {
	r := a.l.newRequest(verb, "", a.l.network.request(entry, a.version, a.runtimeConfig, prev))
	path, err := a.l.machine.find(entry.text("type"))
	a.l.must(err)
	r.binary = path
	maps.Copy(r.env, a.env())
	return a.l.make(r, a.l.machine.rootless)
}

func (a *attachment) env() map[string]string {
	e := map[string]string{"CNI_CONTAINERID": a.id, "CNI_NETNS": a.netns, "CNI_IFNAME": a.ifName}
	if a.cniArgs != "" {
		e["CNI_ARGS"] = a.cniArgs
	}
	return e
}

// request is the plugin's request configuration for a verb.
func (a *attachment) request(verb string) object {
	prev := a.prev
	if verb != "ADD" && a.result != nil {
		prev = a.result
	}
	return a.l.network.request(a.conf, a.version, a.runtimeConfig, prev)
}

// call makes a call of the plugin under test for this attachment.
func (a *attachment) call(verb string, edits ...edit) outcome {
	all := append([]edit{func(r *request) { maps.Copy(r.env, a.env()) }}, edits...)
	return a.l.call(verb, a.request(verb), all...)
}

// add is ADD; the result is kept when it succeeded.
func (a *attachment) add(edits ...edit) outcome {
	o := a.call("ADD", edits...)
	if o.ok() {
		if !json.Valid(o.stdout) {
			a.l.fail("standard output of ADD is not JSON: %s", short(o.stdout))
		}
		a.result = o.stdout
	}
	return o
}

// mustAdd is add for a point that is about something else.
func (a *attachment) mustAdd(edits ...edit) {
	if o := a.add(edits...); !o.ok() {
		a.l.fail("%s", o)
	}
}

func (a *attachment) mustDel(edits ...edit) {
	if o := a.call("DEL", edits...); !o.ok() {
		a.l.fail("%s", o)
	}
}

// takeDown is DEL of this plugin and of those before it.
func (a *attachment) takeDown(edits ...edit) {
	a.mustDel(edits...)
	a.finish()
}

// finish is DEL of the plugins before this one.
func (a *attachment) finish() {
	prev := a.result
	if prev == nil {
		prev = a.prev
	}
	for _, entry := range slices.Backward(a.l.network.before) {
		if o := a.callOf(entry, "DEL", prev); !o.ok() {
			a.l.broken("the plugin before this one, %s: %s", entry.text("type"), o)
		}
	}
}

// attach is an attachment whose ADD has succeeded.
func (l *lab) attach(options ...option) *attachment {
	a := l.newAttachment(options...)
	a.mustAdd()
	return a
}

// warm attaches and takes down a container, so that what belongs to the network and
// not to one attachment, such as a bridge, is there before anything is compared.
func (l *lab) warm(options ...option) {
	a := l.attach(append([]option{withPorts}, options...)...)
	a.takeDown()
	a.container.destroy()
}

// read is a result in the newest form.
func (l *lab) read(raw json.RawMessage) *types100.Result {
	r, err := create.CreateFromBytes(raw)
	if err != nil {
		l.fail("a result that cannot be read: %v: %s", err, short(raw))
	}
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		l.fail("a result that cannot be read: %v: %s", err, short(raw))
	}
	return result
}

// inVersion is a result as one of another version.
func (l *lab) inVersion(result *types100.Result, version string) json.RawMessage {
	r, err := result.GetAsVersion(version)
	l.must(err)
	raw, err := json.Marshal(r)
	l.must(err)
	return raw
}

// own are the addresses of the container's interface in the result.
func (a *attachment) own() []*types100.IPConfig {
	result := a.l.read(a.result)
	var ips []*types100.IPConfig
	for _, ip := range result.IPs {
		if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(result.Interfaces) {
			ips = append(ips, ip)
			continue
		}
		if i := result.Interfaces[*ip.Interface]; i.Sandbox != "" && i.Name == a.ifName {
			ips = append(ips, ip)
		}
	}
	return ips
}

// gone is the code of an attachment that CHECK does not find in order; nil when it
// does.
func (a *attachment) checked(edits ...edit) *types.Error {
	o := a.call("CHECK", edits...)
	if o.ok() {
		return nil
	}
	if e := o.failure(); e != nil {
		return e
	}
	return types.NewError(types.ErrInternal, o.String(), "")
}
