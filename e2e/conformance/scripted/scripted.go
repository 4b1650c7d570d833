// Package scripted is a CNI plugin that does what its configuration says. The
// conformance suite uses it where the plugin under test needs something to delegate
// to, and as the plugin under test, right or broken on purpose, to show that the suite
// can tell the two apart.
//
// # Roles
//
// Named by the key ipam of another plugin's configuration it is an IPAM plugin. With a
// prevResult, and as a delegate or with "chained" in its script, it adds published ports
// to another plugin's interface. Else it makes an interface: one end of a veth pair, with
// an address of 10.77.0.0/16, its own or of an IPAM plugin, a default route, and
// published ports by nftables.
//
// # Script
//
// The key script of its configuration, or of ipam, is a Script. What it is to do wrong is
// in its name, behind a plus sign.
package scripted

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// Name is that of the plugin when it is under test.
const Name = "scripted"

// Script says what the plugin does besides its work.
type Script struct {
	Log   string          `json:"log,omitempty"`   // folder in which each call is written down
	Fail  map[string]uint `json:"fail,omitempty"`  // verb: code of the error that it ends with
	Late  bool            `json:"late,omitempty"`  // it fails after its work, not before
	Print *string         `json:"print,omitempty"` // what ADD prints in place of the result
	Hang  []string        `json:"hang,omitempty"`  // verbs that never end

	Stderr    string         `json:"stderr,omitempty"`    // written to standard error
	NoVersion bool           `json:"noVersion,omitempty"` // the result has no cniVersion
	Routes    []*types.Route `json:"routes,omitempty"`    // further ones in the result
	Device    bool           `json:"device,omitempty"`    // the interface in the result has what 1.1.0 brought

	Chained bool `json:"chained,omitempty"` // as the plugin under test, adds to another's interface
	Helper  bool `json:"helper,omitempty"`  // ADD leaves a process, DEL ends it
}

// plugin is one call.
type plugin struct {
	name  string // as it was called
	verb  string
	stdin []byte
	conf  netConf
}

// Main runs one call and returns the exit status.
func Main() (status int) {
	p := &plugin{name: filepath.Base(os.Args[0]), verb: os.Getenv("CNI_COMMAND")}
	defer func() {
		if r := recover(); r != nil && !p.broken("panic") {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", r, debug.Stack())
			status = p.print(types.NewError(types.ErrInternal, fmt.Sprint("panic: ", r), ""))
		} else if r != nil {
			panic(r)
		}
	}()
	unix.Umask(0o022)
	var err error
	if p.stdin, err = io.ReadAll(os.Stdin); err != nil {
		return p.print(types.NewError(types.ErrIOFailure, err.Error(), ""))
	}
	p.conf, _ = parse(p.stdin) // skel says what is wrong with it
	if p.verb == "VERSION" {
		return p.version()
	}
	if p.verb != "" {
		if e := p.overture(); e != nil {
			return p.print(e)
		}
	}
	if e := p.dispatch(); e != nil {
		return p.print(e)
	}
	return 0
}

// dispatch has the library look at the environment and the configuration, and then
// does the verb.
func (p *plugin) dispatch() *types.Error {
	if p.broken("unknown-verb") && !slices.Contains([]string{"", "ADD", "CHECK", "DEL", "GC", "STATUS"}, p.verb) {
		return nil
	}
	input := p.stdin
	if p.broken("short-read") && len(input) > 64<<10 {
		input = input[:64<<10]
	}
	if err := feed(input); err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	funcs := skel.CNIFuncs{Add: p.finally(p.add), Check: p.finally(p.check), Del: p.finally(p.del), GC: p.finally(p.gc), Status: p.finally(p.status)}
	return skel.PluginMainFuncsWithError(funcs, p.versions(), "CNI plugin scripted, of the conformance suite")
}

// feed makes a text standard input.
func feed(text []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	go func() {
		_, _ = w.Write(text) // skel does not read it for some verbs
		w.Close()
	}()
	os.Stdin = r
	return nil
}

// finally has a verb fail after its work when the script says so.
func (p *plugin) finally(run func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if err := run(args); err != nil {
			return err
		}
		if p.broken("chatty") {
			fmt.Println("level=info msg=done verb=" + p.verb)
		}
		return nil
	}
}

func (p *plugin) script() Script {
	if p.isIPAM() {
		return p.conf.IPAM.Script
	}
	return p.conf.Script
}

// broken says whether the plugin is to do something wrong: its name says what, such as
// scripted+odd-codes, since some calls give it no configuration to read.
func (p *plugin) broken(fault string) bool {
	_, what, _ := strings.Cut(p.name, "+")
	return what == fault
}

// isIPAM says whether the call is of another plugin, for an address.
func (p *plugin) isIPAM() bool { return p.conf.IPAM.Type == p.name && p.conf.Type != p.name }

// overture is what the script wants before the work.
func (p *plugin) overture() *types.Error {
	s := p.script()
	if err := p.writeDown(s.Log); err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	if s.Stderr != "" {
		fmt.Fprintln(os.Stderr, s.Stderr)
	}
	if slices.Contains(s.Hang, p.verb) {
		select {}
	}
	if code := s.Fail[p.verb]; code != 0 && !s.Late {
		return types.NewError(code, fmt.Sprintf("scripted failure %d", code), "")
	}
	if s.Print != nil && p.verb == "ADD" {
		fmt.Print(*s.Print)
		os.Exit(0)
	}
	return nil
}

// writeDown notes the call in the script's log.
func (p *plugin) writeDown(dir string) error {
	if dir == "" {
		return nil
	}
	environment := map[string]string{}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		environment[name] = value
	}
	text, err := json.Marshal(map[string]any{"name": p.name, "path": os.Args[0], "verb": p.verb, "env": environment, "stdin": p.stdin})
	if err != nil {
		return err
	}
	return os.WriteFile(fmt.Sprintf("%s/%020d-%d.json", dir, time.Now().UnixNano(), os.Getpid()), text, 0o644)
}

// versions are all, or those up to the version that the name ends with.
func (p *plugin) versions() version.PluginInfo {
	_, newest, limited := strings.Cut(p.name, "-1.")
	if !limited {
		return version.All
	}
	var upTo []string
	for _, v := range version.All.SupportedVersions() {
		if v <= "1."+newest {
			upTo = append(upTo, v)
		}
	}
	return version.PluginSupports(upTo...)
}

func (p *plugin) version() int {
	asked := p.conf.CNIVersion
	if asked == "" || p.broken("constant-version") {
		asked = version.Current()
	}
	err := json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": asked, "supportedVersions": p.versions().SupportedVersions()})
	if err != nil {
		return 1
	}
	return 0
}

// print prints an error and returns the exit status.
func (p *plugin) print(e *types.Error) int {
	if p.broken("silent-env") && e.Code == types.ErrInvalidEnvironmentVariables {
		e.Msg = "something is missing"
	}
	if p.broken("odd-codes") {
		e.Code = 100
	}
	out, err := json.Marshal(struct {
		CNIVersion string `json:"cniVersion,omitempty"`
		*types.Error
	}{p.conf.CNIVersion, e})
	if err != nil {
		panic(err)
	}
	fmt.Println(string(out))
	if p.broken("exit-zero") {
		return 0
	}
	return 1
}
