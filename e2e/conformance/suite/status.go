package suite

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
)

// status is STATUS with a configuration.
func (l *lab) status(conf object, edits ...edit) outcome {
	if conf == nil {
		conf = l.network.subject
	}
	return l.call("STATUS", l.network.request(conf, "1.1.0", nil, nil), edits...)
}

func statusWhenReady(l *lab) {
	l.needs("1.1.0", "STATUS")
	o := l.status(nil)
	l.succeeds(o)
	if len(o.stdout) > 0 {
		l.fail("STATUS printed %s", short(o.stdout))
	}
}

func statusWhenMissing(l *lab) {
	l.needs("1.1.0", "STATUS")
	tried := 0
	for _, need := range l.job.Needs {
		tried++
		show := l.hide(need)
		o := l.status(nil)
		show()
		if o.code() != 50 {
			l.fail("without %s: expected an error of code 50: %s", need, o)
		}
		l.saw("without %s: %s", need, o)
	}
	if l.job.DelegateKey != "" {
		tried++
		o := l.status(l.delegate(script{kind: "no-such-plugin"}).conf)
		if o.code() != 50 {
			l.fail("without its delegate: expected an error of code 50: %s", o)
		}
		l.saw("without its delegate: %s", o)
	}
	if tried == 0 {
		l.inapplicable("nothing is known that ADD could not work without and that can be taken away (option --needs)")
	}
}

func statusWhenLimited(l *lab) {
	l.needs("1.1.0", "STATUS")
	o := l.status(l.delegate(script{script: scripted.Script{Fail: map[string]uint{"STATUS": 51}}}).conf)
	l.expect(o, 51)
}

func statusOfDelegates(l *lab) {
	l.needs("1.1.0", "STATUS")
	d := l.delegate(script{})
	l.succeeds(l.status(d.conf))
	if len(d.calls("STATUS")) != 1 {
		l.fail("the delegate was not asked")
	}
	d = l.delegate(script{script: scripted.Script{Fail: map[string]uint{"STATUS": 123}}})
	l.expect(l.status(d.conf), 123)
}

func addWithoutStatus(l *lab) {
	a := l.newAttachment(withPorts)
	l.succeeds(a.add())
	a.takeDown()
}

func versionReply(l *lab) {
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		o := l.call("VERSION", object{}.with("cniVersion", v))
		l.succeeds(o)
		var answer struct {
			CNIVersion string `json:"cniVersion"`
		}
		if err := json.Unmarshal(o.stdout, &answer); err != nil || answer.CNIVersion != v {
			l.fail("asked in %s, it answered in %q: %s", v, answer.CNIVersion, short(o.stdout))
		}
	}
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if !l.speaks(v) {
			l.fail("it does not list %s: %v", v, l.supported())
		}
	}
	l.saw("%s", strings.Join(l.supported(), ", "))
}

func delegateStderr(l *lab) {
	const text = "the delegate has something to say"
	a := l.delegate(script{script: scripted.Script{Stderr: text}}).attachment()
	o := a.add()
	l.succeeds(o)
	if !strings.Contains(string(o.stderr), text) {
		l.fail("standard error of ADD is %s", short(o.stderr))
	}
	o = a.call("DEL")
	if !strings.Contains(string(o.stderr), text) {
		l.fail("standard error of DEL is %s", short(o.stderr))
	}
}

func delegateEnvironment(l *lab) {
	d := l.delegate(script{})
	a := d.attachment(withArgs("IgnoreUnknown=1;COLOUR=red"))
	given := map[string]string{}
	keep := func(r *request) {
		r.env["CNI_SOMETHING"], r.env["TZ"] = "a=b;c", "Europe/Berlin"
		for name, value := range r.env {
			given[name] = value
		}
	}
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		if verb == "CHECK" && a.version < "0.4.0" {
			continue
		}
		o := a.call(verb, keep)
		l.succeeds(o)
		if verb == "ADD" {
			a.result = o.stdout
		}
		calls := d.calls(verb)
		if len(calls) != 1 {
			l.fail("the delegate got %s %d times", verb, len(calls))
		}
		for name, value := range given {
			if got := calls[0].Env[name]; got != value {
				l.fail("%s: the delegate's %s is %q, and the plugin's %q", verb, name, got, value)
			}
		}
		for name := range calls[0].Env {
			if _, was := given[name]; !was && name != "PWD" {
				l.fail("%s: the delegate has %s, and the plugin has not", verb, name)
			}
		}
	}
}

func delegateConfiguration(l *lab) {
	if l.job.DelegateKey != "" && l.isOne() {
		l.innerOfOne()
		return
	}
	wanting := object{}.with("capabilities", map[string]bool{"mac": true})
	d := l.delegate(script{more: wanting}, script{kind: "delegate-b"})
	config := object{}.with("mac", "02:42:ac:11:00:02").with("ips", []string{})
	conf := d.conf.with("capabilities", map[string]bool{"mac": true, "ips": true})
	a := l.newAttachment(withConf(conf), withRuntime(config))
	l.succeeds(a.add())
	calls := d.calls("ADD")
	if len(calls) != 2 {
		l.fail("%d of 2 delegates got ADD", len(calls))
	}
	for _, c := range calls {
		if c.conf().text("name") != l.network.name || c.conf().text("cniVersion") != a.version {
			l.fail("%s got the configuration %s", c.Name, short(c.Stdin))
		}
		if _, has := c.conf()["capabilities"]; has {
			l.saw("%s got capabilities, which must not be set (S3)", c.Name)
		}
	}
	if got := string(calls[0].conf()["runtimeConfig"]); got != `{"mac":"02:42:ac:11:00:02"}` {
		l.fail("the first delegate declares mac only, and got the runtimeConfig %s", short([]byte(got)))
	}
	if got, has := calls[1].conf()["runtimeConfig"]; has {
		l.fail("the second delegate declares nothing, and got the runtimeConfig %s", short(got))
	}
	if prev, has := calls[0].conf()["prevResult"]; has && len(a.prev) == 0 {
		l.fail("the first delegate got a prevResult: %s", short(prev))
	}
	if prev := calls[1].conf()["prevResult"]; len(prev) == 0 || len(l.read(prev).IPs) == 0 {
		l.fail("the second delegate did not get the result of the first: %s", short(prev))
	}
}

// innerOfOne is the same for an IPAM plugin, which gets the complete configuration of
// the plugin that calls it.
func (l *lab) innerOfOne() {
	d := l.delegate(script{})
	a := d.attachment(withPorts)
	l.succeeds(a.add())
	calls := d.calls("ADD")
	if len(calls) != 1 {
		l.fail("the delegate got %d ADDs", len(calls))
	}
	given := a.request("ADD")
	for name, value := range given {
		if !sameJSON(calls[0].conf()[name], value) {
			l.fail("key %s of the configuration was %s, and the delegate got %s", name, short(value), short(calls[0].conf()[name]))
		}
	}
	l.saw("the delegate got the complete configuration")
}

func delegateBadOutput(l *lab) {
	for _, text := range []string{"null", "", "{", `{"cniVersion":"1.0.0","ips":[`, "[]", "7", "nonsense"} {
		a := l.delegate(script{script: scripted.Script{Print: &text}}).attachment()
		l.fails(a.add(), "the delegate printed "+short([]byte(text))+":")
	}
}

func delegateWithoutVersion(l *lab) {
	a := l.delegate(script{script: scripted.Script{NoVersion: true}}).attachment()
	l.succeeds(a.add())
	if len(a.own()) == 0 {
		l.fail("the delegate's address is not in the result: %s", short(a.result))
	}
}

// writing is how long a delegate's binary is being written while it is wanted.
const writing = 300 * time.Millisecond

func delegateBeingWritten(l *lab) {
	dir := l.folder("written", "delegate-written")
	a := l.delegate(script{kind: "delegate-written"}).attachment()
	f, err := os.OpenFile(filepath.Join(dir, "delegate-written"), os.O_RDWR, 0)
	l.must(err)
	o := a.add(env("CNI_PATH", dir+":"+l.machine.path), func(r *request) {
		r.during = func(*os.Process) {
			time.Sleep(writing)
			f.Close()
		}
	})
	if !o.ok() {
		l.fail("a delegate's binary was being written during %s: %s", writing, o)
	}
}

func delegateTooSlow(l *lab) {
	if l.job.DelegateTimeout == "" {
		l.inapplicable("the plugin has no time-out for delegates to configure (option --delegate-timeout)")
	}
	d := l.delegate(script{script: scripted.Script{Hang: []string{"ADD"}}})
	limits, err := parseObject([]byte("{" + l.job.DelegateTimeout + "}"))
	l.must(err)
	var options []option
	for name, value := range limits {
		options = append(options, withKey(name, value))
	}
	l.warm()
	a := d.attachment(options...)
	before := l.snapshot(a.container)
	o := a.add()
	if c := o.code(); o.ok() || o.hung || (c != tryAgain && c < 100) {
		l.fail("expected an error of code 11, or of 100 or more: %s", o)
	}
	if len(d.calls("DEL")) == 0 {
		l.fail("the delegate that hung got no DEL")
	}
	l.unchanged(before, "after a delegate that hung", a.container)
	l.saw("%s", o)
}

func firstFolderOfPath(l *lab) {
	first, second := l.folder("first", "delegate-sought"), l.folder("second", "delegate-sought")
	d := l.delegate(script{kind: "delegate-sought"})
	a := d.attachment()
	path := env("CNI_PATH", strings.Join([]string{stage + "/missing", first, second, l.machine.path}, ":"))
	a.mustAdd(path)
	calls := d.calls("ADD")
	if len(calls) != 1 || calls[0].Path != first+"/delegate-sought" {
		l.fail("it did not run %s/delegate-sought, the first in CNI_PATH: %v", first, calls)
	}
	d.forget()
	for _, kind := range []string{"../delegates/delegate", "/run/conformance/delegates/delegate"} {
		b := l.delegate(script{kind: kind}).attachment()
		l.fails(b.add(), "type "+kind+":")
		if len(d.calls("ADD")) > 0 {
			l.fail("it ran the delegate of type %s", kind)
		}
	}
}

func relativeFolderOfPath(l *lab) {
	dir := l.folder("here", "delegate-sought", "bin/delegate-sought")
	d := l.delegate(script{kind: "delegate-sought"})
	here := func(r *request) { r.dir = dir }
	for _, path := range []string{".", "./bin", "bin", ":" + l.machine.path, l.machine.path + ":", ".:" + l.machine.path} {
		a := d.attachment()
		o := a.add(env("CNI_PATH", path), here)
		if len(d.calls("ADD")) > 0 {
			l.fail("with the CNI_PATH %q it ran the delegate of the current folder: %s", path, o)
		}
		l.fails(o, "with the CNI_PATH "+path)
	}
}

func delegateKeysAsWritten(l *lab) {
	strange := `{"big":9007199254740993,"huge":123456789012345678901234567890,"float":1.0,"exp":1E3,"null":null,"nested":[{"a":[null,{"b":{}}]}],"text":"<&>é\u00e9"}`
	d := l.delegate(script{more: object{"xKey": json.RawMessage(strange), "yKey": json.RawMessage(`null`)}})
	a := d.attachment()
	a.mustAdd()
	a.mustDel()
	for _, c := range d.calls("ADD", "DEL") {
		got := c.conf()
		if l.isOne() {
			inner, err := parseObject(got[ipamKey])
			l.must(err)
			got = inner
		}
		if string(got["xKey"]) != strange {
			l.fail("%s: the delegate got %s, and not %s", c.Verb, short(got["xKey"]), short([]byte(strange)))
		}
		if string(got["yKey"]) != "null" {
			l.fail("%s: a key that is null became %s", c.Verb, short(got["yKey"]))
		}
	}
	if !slices.ContainsFunc(d.calls("DEL"), func(delegateCall) bool { return true }) {
		l.fail("the delegate got no DEL")
	}
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
