package suite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// expect fails when a call did not end with an error of one of these codes.
func (l *lab) expect(o outcome, codes ...uint) {
	if o.ok() || o.hung || !slices.Contains(codes, uint(o.code())) {
		l.fail("expected an error of code %s: %s", join(codes), o)
	}
}

func join(codes []uint) string {
	var texts []string
	for _, c := range codes {
		texts = append(texts, fmt.Sprint(c))
	}
	return strings.Join(texts, " or ")
}

func (l *lab) succeeds(o outcome) {
	if !o.ok() {
		l.fail("%s", o)
	}
}

// fails is any well-formed error.
func (l *lab) fails(o outcome, when string) {
	if o.ok() {
		l.fail("%s %s", when, o)
	}
	if o.failure() == nil {
		l.fail("%s no error in JSON: %s", when, o)
	}
}

// checks makes a point one for plugins that know CHECK.
func (l *lab) checks() {
	for _, v := range l.supported() {
		if !slices.Contains([]string{"0.1.0", "0.2.0", "0.3.0", "0.3.1"}, v) {
			return
		}
	}
	l.inapplicable("the plugin lists no version from 0.4.0, which brought CHECK")
}

func unknownCommand(l *lab) {
	a := l.newAttachment()
	for _, verb := range []string{"DANCE", "add", "ADD "} {
		l.expect(a.call("ADD", env("CNI_COMMAND", verb)), types.ErrInvalidEnvironmentVariables)
	}
}

func noCommand(l *lab) {
	o := l.call("no verb", l.network.subject, noEnv("CNI_COMMAND"))
	l.succeeds(o)
	if len(o.stdout) > 0 {
		l.fail("it printed %s on standard output", short(o.stdout))
	}
	if !strings.Contains(string(o.stderr), l.supported()[0]) {
		l.fail("standard error names no supported version: %s", short(o.stderr))
	}
	l.saw("%s", short(o.stderr))
}

// missing calls a verb without each of some variables, and without all of them.
func (l *lab) missing(a *attachment, verb string, names ...string) {
	for _, name := range names {
		o := a.call(verb, noEnv(name))
		l.expect(o, types.ErrInvalidEnvironmentVariables)
		if !o.says(name) {
			l.fail("without %s: the message does not name it: %s", name, o)
		}
	}
	o := a.call(verb, noEnv(names...))
	l.expect(o, types.ErrInvalidEnvironmentVariables)
	for _, name := range names {
		if !o.says(name) {
			l.fail("without %s: the message does not name %s: %s", strings.Join(names, ", "), name, o)
		}
	}
	l.saw("%s", o)
}

func addWithoutVariables(l *lab) {
	l.missing(l.newAttachment(), "ADD", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
}

func checkWithoutVariables(l *lab) {
	l.checks()
	l.missing(l.attach(), "CHECK", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
}

func delNeedsFewVariables(l *lab) {
	a := l.attach()
	l.missing(a, "DEL", "CNI_CONTAINERID", "CNI_IFNAME")
	l.succeeds(a.call("DEL", noEnv("CNI_NETNS")))
}

func gcNeedsFewVariables(l *lab) {
	l.needs("1.1.0", "GC")
	l.succeeds(l.gc(nil))
}

func statusWithoutAttachment(l *lab) {
	l.needs("1.1.0", "STATUS")
	o := l.call("STATUS", l.network.request(l.network.subject, "1.1.0", nil, nil))
	if c := o.code(); !o.ok() && c != 50 && c != 51 {
		l.fail("%s", o)
	}
	l.saw("%s", o)
}

func versionWithoutInput(l *lab) {
	for _, input := range [][]byte{{}, []byte("\n")} {
		o := l.call("VERSION", nil, stdin(input))
		l.succeeds(o)
		var answer struct {
			CNIVersion        string   `json:"cniVersion"`
			SupportedVersions []string `json:"supportedVersions"`
		}
		if err := json.Unmarshal(o.stdout, &answer); err != nil || answer.CNIVersion == "" || len(answer.SupportedVersions) == 0 {
			l.fail("%s, which lacks cniVersion or supportedVersions", o)
		}
	}
}

func badContainerID(l *lab) {
	a := l.newAttachment()
	for _, id := range []string{"-a", ".a", "_a", "a/b", "a b", "../a", "a\n", "ä", "a:b"} {
		l.expect(a.call("ADD", env("CNI_CONTAINERID", id)), types.ErrInvalidEnvironmentVariables)
	}
	a.finish()
	for _, id := range []string{"0", "A.b_c-9", strings.Repeat("0123456789abcdef", 4)} {
		good := l.newAttachment(withID(id))
		l.succeeds(good.add())
		good.takeDown()
	}
}

func badIfName(l *lab) {
	a := l.newAttachment()
	for _, name := range []string{"sixteen-bytes-00", "a/b", "a:b", "a b", "a\tb", ".", ".."} {
		l.expect(a.call("ADD", env("CNI_IFNAME", name)), types.ErrInvalidEnvironmentVariables)
	}
	a.finish()
	good := l.newAttachment(withIfName("fifteen-bytes-0"))
	l.succeeds(good.add())
	good.takeDown()
}

func argumentsOfCNI(l *lab) {
	for _, args := range []string{
		"IgnoreUnknown=1;COLOUR=red;SHAPE=round",
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=0123456789ab;K8S_POD_UID=6f1c",
		"COLOUR=red;IgnoreUnknown=true",
	} {
		a := l.newAttachment(withArgs(args))
		o := a.add()
		if !o.ok() {
			l.fail("with CNI_ARGS %q: %s", args, o)
		}
		a.takeDown()
	}
}

// sample are calls of every kind, some that have to succeed and some that must not.
func (l *lab) sample() (good, bad []outcome) {
	a := l.newAttachment()
	bad = append(bad,
		a.call("ADD", stdin([]byte("{"))),
		a.call("ADD", noEnv("CNI_IFNAME")),
		a.call("ADD", key("cniVersion", "9.9.9")),
		a.call("ADD", noKey("name")),
		a.call("DANCE"),
		a.call("DEL", noEnv("CNI_CONTAINERID")),
	)
	good = append(good, l.call("VERSION", object{}.with("cniVersion", a.version)), a.add())
	if version := a.version; version >= "0.4.0" {
		good = append(good, a.call("CHECK"))
		bad = append(bad, a.call("CHECK", noKey("prevResult")))
	}
	good = append(good, a.call("DEL"), a.call("DEL"))
	a.finish()
	return good, bad
}

func exitStatus(l *lab) {
	good, bad := l.sample()
	for _, o := range good {
		if !o.ok() || o.failure() != nil {
			l.fail("%s", o)
		}
		var e types.Error
		if json.Unmarshal(o.stdout, &e) == nil && e.Code != 0 {
			l.fail("status 0 with an error: %s", short(o.stdout))
		}
	}
	for _, o := range bad {
		if o.ok() {
			l.fail("status 0 for what must fail: %s", o)
		}
	}
	l.saw("%d calls that succeed, %d that fail", len(good), len(bad))
}

// documents counts the JSON documents in a text that has nothing else.
func documents(text []byte) (int, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	for n := 0; ; n++ {
		var v any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func onlyResultOnStdout(l *lab) {
	good, bad := l.sample()
	for _, o := range append(good, bad...) {
		want := 1
		if o.ok() && (o.verb == "CHECK" || o.verb == "DEL") {
			want = 0
		}
		if n, err := documents(o.stdout); err != nil || n != want {
			l.fail("%s: standard output is not %d document of JSON: %s", o.verb, want, short(o.stdout))
		}
	}
}

func errorInJSON(l *lab) {
	_, bad := l.sample()
	without := 0
	for _, o := range bad {
		var e struct {
			CNIVersion *string `json:"cniVersion"`
			Code       *uint   `json:"code"`
			Msg        *string `json:"msg"`
		}
		if err := json.Unmarshal(o.stdout, &e); err != nil || e.Code == nil || *e.Code == 0 || e.Msg == nil || *e.Msg == "" {
			l.fail("an error without a code or msg: %s", o)
		}
		if e.CNIVersion == nil {
			without++
		} else if v := *e.CNIVersion; v != l.network.version && v != "9.9.9" {
			l.fail("an error with cniVersion %q, not %q: %s", v, l.network.version, short(o.stdout))
		}
	}
	if without > 0 {
		l.saw("%d of %d errors without cniVersion, which S5 lists and does not require", without, len(bad))
	}
}

// noInputPanics gives every key of the configuration, of prevResult and of runtimeConfig
// values of every other kind.
func noInputPanics(l *lab) {
	a := l.attach()
	tried := 0
	try := func(verb, name, value string, edits ...edit) {
		tried++
		o := a.call(verb, append(edits, key(name, json.RawMessage(value)))...)
		// What is on standard error may be a delegate's last words.
		if !o.ok() && o.failure() == nil {
			l.fail("with %s %s: %s", name, value, o)
		}
	}
	values := []string{`null`, `7`, `"text"`, `[]`, `[null]`, `{}`, `{"a":null}`, `true`}
	for name := range a.request("CHECK").without("cniVersion", "name", "type") {
		for _, v := range values {
			try("CHECK", name, v)
		}
	}
	for _, name := range []string{"args", "runtimeConfig", "ipam", "dns", "capabilities"} {
		for _, v := range values {
			try("CHECK", name, v)
		}
	}
	for _, prev := range hostileResults(a.version) {
		try("CHECK", "prevResult", prev)
		try("ADD", "prevResult", prev, env("CNI_IFNAME", "hostile0"))
		try("DEL", "prevResult", prev, env("CNI_IFNAME", "hostile0"))
	}
	for _, ports := range []string{`null`, `{}`, `[null]`, `[7]`, `[{}]`, `[{"hostPort":"x"}]`, `[{"hostPort":1e9,"containerPort":-1}]`} {
		wanted := `{"portMappings":` + ports + `,"ips":` + ports + `,"mac":` + ports + `}`
		try("ADD", "runtimeConfig", wanted, env("CNI_IFNAME", "hostile1"))
		try("DEL", "runtimeConfig", wanted, env("CNI_IFNAME", "hostile1"))
	}
	l.saw("%d calls", tried)
}

func hostileResults(version string) []string {
	bodies := []string{
		`"ips":null,"interfaces":null`,
		`"ips":[null],"interfaces":[null]`,
		`"ips":[{"address":"10.0.0.2/24","interface":99}]`,
		`"ips":[{"address":"10.0.0.2/24","interface":-1}],"interfaces":[{"name":"eth0"}]`,
		`"ips":[{"address":"nonsense"}]`,
		`"ips":[{}],"interfaces":[{}],"routes":[{}]`,
		`"routes":[null],"dns":null`,
		`"interfaces":{"name":"eth0"}`,
	}
	var results []string
	for _, b := range bodies {
		results = append(results, `{"cniVersion":"`+version+`",`+b+`}`)
	}
	return append(results, `{"cniVersion":7}`, `{"cniVersion":"9.9.9"}`)
}

func anyPathOfNamespace(l *lab) {
	type form struct{ name, path string }
	c := l.newContainer()
	pid, err := c.pid()
	l.must(err)
	held, number := l.holdNamespace(c)
	defer held()
	mounted := l.mountNamespace(c)
	for _, f := range []form{
		{"the runtime's own", c.path},
		{"/proc/PID/ns/net", fmt.Sprintf("/proc/%d/ns/net", pid)},
		{"/proc/PID/fd/N", number},
		{"$XDG_RUNTIME_DIR/netns", mounted},
	} {
		a := l.newAttachment(withContainer(c), withNetns(f.path))
		if o := a.add(); !o.ok() {
			l.fail("CNI_NETNS %s (%s): %s", f.path, f.name, o)
		}
		if !slices.ContainsFunc(l.read(a.result).Interfaces, func(i *interface100) bool { return i.Sandbox == f.path }) {
			l.fail("CNI_NETNS %s: no interface has it as sandbox: %s", f.path, short(a.result))
		}
		a.takeDown()
	}
}

// holdNamespace has a process hold an open descriptor of the namespace, as Buildah
// does, and returns its path.
func (l *lab) holdNamespace(c *container) (release func(), path string) {
	f, err := os.Open(c.path)
	l.must(err)
	cmd := l.start([]*os.File{f}, "sleep", "infinity")
	f.Close()
	return func() { end(cmd) }, fmt.Sprintf("/proc/%d/fd/3", cmd.Process.Pid)
}

// mountNamespace keeps a namespace at a path in the user's run-time folder, as
// Podman does.
func (l *lab) mountNamespace(c *container) string {
	dir := runtimeDir() + "/netns"
	l.must(os.MkdirAll(dir, 0o755))
	path := fmt.Sprintf("%s/netns-%d", dir, l.containers)
	l.must(os.WriteFile(path, nil, 0o444))
	l.must(unix.Mount(c.path, path, "", unix.MS_BIND, ""))
	l.clean = append(l.clean, func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func ownNamespaceRefused(l *lab) {
	a := l.newAttachment()
	own := stage + "/own"
	l.must(os.WriteFile(own, nil, 0o444))
	l.must(unix.Mount("/proc/self/ns/net", own, "", unix.MS_BIND, ""))
	before := l.snapshot()
	for _, path := range []string{own, "/proc/self/ns/net"} {
		o := a.call("ADD", env("CNI_NETNS", path))
		l.fails(o, "CNI_NETNS "+path+":")
		l.saw("%s", o)
		l.unchanged(before, "after the error")
	}
}

func netnsIsRegularFile(l *lab) {
	file := stage + "/regular"
	l.must(os.WriteFile(file, []byte("no namespace\n"), 0o644))
	a := l.newAttachment(withPorts)
	o := a.call("ADD", env("CNI_NETNS", file))
	if o.ok() && l.network.chained() {
		l.inapplicable("it works on the host only, from the addresses of prevResult, and needs no namespace")
	}
	l.saw("%s", o)
	l.expect(o, types.ErrInvalidEnvironmentVariables, types.ErrInvalidNetworkConfig)
	if !o.says(file) && !o.says("CNI_NETNS") {
		l.fail("the message names neither the path nor CNI_NETNS: %s", o)
	}
	l.succeeds(a.call("DEL", env("CNI_NETNS", file)))
}
