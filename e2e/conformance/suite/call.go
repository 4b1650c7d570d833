package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// callLimit is how long a plugin may take for one verb. Nothing that is measured: a
// plugin that hangs is a failure, and not the end of the suite.
const callLimit = 5 * time.Minute

// outputLimit is how long what a plugin has printed may take to arrive after its end,
// when a process that it left holds its standard output or error.
const outputLimit = 10 * time.Second

// object is a JSON object whose values are kept as they were written.
type object map[string]json.RawMessage

// with returns a copy with one key set.
func (o object) with(key string, value any) object {
	c := maps.Clone(o)
	if c == nil {
		c = object{}
	}
	raw, isRaw := value.(json.RawMessage)
	if !isRaw {
		raw = marshal(value)
	}
	c[key] = raw
	return c
}

// without returns a copy that lacks these keys.
func (o object) without(keys ...string) object {
	c := maps.Clone(o)
	for _, key := range keys {
		delete(c, key)
	}
	return c
}

func (o object) text(key string) string {
	var s string
	_ = json.Unmarshal(o[key], &s)
	return s
}

func (o object) bytes() []byte {
	return marshal(o)
}

// marshal keeps what is raw as it is; json.Marshal would write < as \u003c.
func marshal(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSpace(b.Bytes())
}

func parseObject(raw []byte) (object, error) {
	var o object
	err := json.Unmarshal(raw, &o)
	if err == nil && o == nil {
		err = errors.New("null is no object")
	}
	return o, err
}

// request is one call of a plugin.
type request struct {
	verb   string
	binary string
	env    map[string]string
	conf   object
	raw    []byte // standard input when it is not conf
	dir    string
	stdout *os.File
	// during is called while the plugin runs.
	during func(*os.Process)
}

// edit changes a request before it is made.
type edit func(*request)

func env(name, value string) edit { return func(r *request) { r.env[name] = value } }
func noEnv(names ...string) edit {
	return func(r *request) {
		for _, name := range names {
			delete(r.env, name)
		}
	}
}
func key(name string, value any) edit {
	return func(r *request) { r.conf = r.conf.with(name, value) }
}
func noKey(names ...string) edit { return func(r *request) { r.conf = r.conf.without(names...) } }
func stdin(raw []byte) edit      { return func(r *request) { r.raw = raw } }

// outcome is what became of a call.
type outcome struct {
	verb           string
	status         int // exit status; -1 for a signal
	signal         syscall.Signal
	stdout, stderr []byte
	hung           bool
}

func (o outcome) ok() bool { return o.status == 0 && !o.hung }

// failure is the error that the plugin printed; nil when it printed none.
func (o outcome) failure() *types.Error {
	var e types.Error
	if o.status == 0 || json.Unmarshal(o.stdout, &e) != nil || (e.Code == 0 && e.Msg == "") {
		return nil
	}
	return &e
}

func (o outcome) code() int {
	if e := o.failure(); e != nil {
		return int(e.Code)
	}
	return 0
}

// says tells whether the error, or what was written to standard error, has a text.
func (o outcome) says(text string) bool {
	e := o.failure()
	return e != nil && strings.Contains(e.Msg+" "+e.Details, text)
}

func (o outcome) String() string {
	switch e := o.failure(); {
	case o.hung:
		return fmt.Sprintf("%s did not end within %s", o.verb, callLimit)
	case o.status == 0 && len(bytes.TrimSpace(o.stdout)) == 0:
		return o.verb + " succeeded"
	case o.status == 0:
		return o.verb + " succeeded and printed " + short(o.stdout)
	case e != nil:
		text := strings.TrimSpace(e.Msg + " " + e.Details)
		return fmt.Sprintf("%s failed with code %d, %s", o.verb, e.Code, short([]byte(text)))
	case o.signal != 0:
		return fmt.Sprintf("%s was ended by %v", o.verb, o.signal)
	}
	line, _, _ := bytes.Cut(o.stderr, []byte("\n")) // of a panic, what it was
	return fmt.Sprintf("%s ended with status %d and printed %s, on standard error %s", o.verb, o.status, short(o.stdout), short(line))
}

// short is a text on one line that fits into a report.
func short(text []byte) string {
	s := strings.Join(strings.Fields(string(text)), " ")
	const most = 240
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "…"
	}
	return "“" + s + "”"
}

// newRequest is a call of a plugin with a configuration, without the parameters of
// an attachment.
func (l *lab) newRequest(verb, binary string, conf object) *request {
	r := &request{verb: verb, binary: binary, conf: conf, env: map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME": "/tmp", "CNI_COMMAND": verb, "CNI_PATH": l.machine.path,
	}}
	if l.machine.rootless {
		r.env["XDG_RUNTIME_DIR"] = runtimeDir()
	}
	return r
}

// call makes a call of the plugin under test.
func (l *lab) call(verb string, conf object, edits ...edit) outcome {
	r := l.newRequest(verb, l.subject(), conf)
	for _, e := range edits {
		e(r)
	}
	return l.make(r, l.machine.rootless)
}

// make makes a call and waits for its end.
func (l *lab) make(r *request, asUser bool) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.binary)
	cmd.WaitDelay = outputLimit
	cmd.Dir = r.dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = credentials(asUser)
	for _, name := range slices.Sorted(maps.Keys(r.env)) {
		cmd.Env = append(cmd.Env, name+"="+r.env[name])
	}
	input := r.raw
	if input == nil {
		input = r.conf.bytes()
	}
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if r.stdout != nil {
		cmd.Stdout = r.stdout
	}
	if err := cmd.Start(); err != nil {
		l.broken("starting %s: %v", r.binary, err)
	}
	if r.during != nil {
		r.during(cmd.Process)
	}
	_ = cmd.Wait() // its state says more
	o := outcome{verb: r.verb, status: cmd.ProcessState.ExitCode(), stdout: stdout.Bytes(), stderr: stderr.Bytes(), hung: ctx.Err() != nil}
	if status, is := cmd.ProcessState.Sys().(syscall.WaitStatus); is && status.Signaled() {
		o.signal = status.Signal()
	}
	return o
}

// credentials make a process one of the unprivileged user.
func credentials(asUser bool) *syscall.SysProcAttr {
	if !asUser {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: userID}}
}
