package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// caseVariable names the case of rootCases that this process is to run, inside a
// machine.
const caseVariable = "AMBI_E2E_CASE"

// rootCases are tests of root mode that are tables rather than stories.
func rootCases() map[string]func(*testing.T) {
	cases := map[string]func(*testing.T){
		"parallel":         attachInParallel,
		"ports nftables":   func(t *testing.T) { publishPorts(t, "nftables") },
		"ports iptables":   func(t *testing.T) { publishPorts(t, "iptables") },
		"delegates behave": func(t *testing.T) { misbehave(t, "") },
		"delegate hangs":   func(t *testing.T) { misbehave(t, "hang") },
		"delegate ignores": func(t *testing.T) { misbehave(t, "ignore") },
		"signals":          signalVerbs,
		"killed DEL again": killDEL,
	}
	for name, k := range killings {
		cases["killed "+name] = func(t *testing.T) { killADD(t, k, phase(name)) }
	}
	for _, verb := range []string{"DEL", "GC"} {
		for _, plugins := range []string{"1.10.0", "1.9.1", "1.1.1"} {
			for chain := range chains {
				cases[strings.Join([]string{"faults", chain, plugins, verb}, " ")] = func(t *testing.T) { suffer(t, chain, plugins, verb) }
			}
		}
	}
	return cases
}

// TestRoot runs every case in a machine of its own.
func TestRoot(t *testing.T) {
	if os.Getenv(caseVariable) != "" || os.Getenv(scriptVariable) != "" {
		t.Skip("inside a machine")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	t.Parallel()
	for name := range rootCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := inMachine("^TestInsideRoot$", caseVariable+"="+name).CombinedOutput()
			if err != nil || testing.Verbose() {
				t.Logf("%s", out)
			}
			require.NoError(t, err)
		})
	}
}

// TestInsideRoot is the inner half of TestRoot.
func TestInsideRoot(t *testing.T) {
	run, ok := rootCases()[os.Getenv(caseVariable)]
	if !ok {
		t.Skip("TestRoot runs it, in a machine of its own")
	}
	require.NoError(t, furnish())
	t.Setenv("PATH", stage+"/sbin:"+stage+"/plugins:"+os.Getenv("PATH"))
	run(t)
}

// call is one call of the plugin.
type call struct {
	verb, container, netns string
	config                 string
	path                   string // CNI_PATH; empty: plugins 1.9.1
}

func (c call) command() *exec.Cmd {
	cmd := exec.Command(stage + "/bin/ambi")
	if c.path == "" {
		c.path = stage + "/plugins"
	}
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+c.verb, "CNI_CONTAINERID="+c.container, "CNI_NETNS="+c.netns, "CNI_IFNAME=eth0", "CNI_PATH="+c.path)
	cmd.Stdin = strings.NewReader(c.config)
	return cmd
}

// run returns what was printed on standard output; the error has what was printed
// on standard error.
func (c call) run() (string, error) {
	cmd := c.command()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s of %s: %w: %s%s", c.verb, c.container, err, out.String(), errOut.String())
	}
	return out.String(), nil
}

func (c call) must(t *testing.T) string {
	t.Helper()
	out, err := c.run()
	require.NoError(t, err)
	return out
}

// fails returns the code and the message of the error.
func (c call) fails(t *testing.T) (code int, msg string) {
	t.Helper()
	out, err := c.run()
	require.Error(t, err, "%s of %s", c.verb, c.container)
	var e struct {
		Code int
		Msg  string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &e), "%v", err)
	return e.Code, e.Msg
}

// sh runs a line of shell.
func sh(t *testing.T, format string, args ...any) string {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	out, err := exec.Command("sh", "-ec", line).CombinedOutput()
	require.NoError(t, err, "%s: %s", line, out)
	return string(out)
}

// start runs a program until the returned function is called, or the test ends.
func start(t *testing.T, argv ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	require.NoError(t, cmd.Start())
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // a second time it fails
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.True(t, waitUntil(patience, condition), "waited %s for %s", patience, what)
}

// requireSame waits until the machine is as it was: the kernel takes a namespace
// apart after its last user has gone.
func requireSame(t *testing.T, before snapshot.Snapshot) {
	t.Helper()
	require.Empty(t, snapshot.Await(patience, before, machine.Take), "the machine has changed (- before, + now)")
}

// chains are the delegates of the faults; none are the built-in network.
var chains = map[string]string{
	"built-in": `[],"bridge":{"subnet":"10.1.0.0/24","subnet6":"fd01::/64"}`,
	"bridge": `[
  {"type":"bridge","bridge":"own0","isGateway":true,"ipMasq":true,"hairpinMode":true,
   "ipam":{"type":"host-local","dataDir":"/run/own","ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd01::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
  {"type":"firewall"},
  {"type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.log_martians":"1"},"mtu":1400},
  {"type":"bandwidth","ingressRate":80000000,"ingressBurst":8000000,"egressRate":80000000,"egressBurst":8000000}]`,
	"ptp": `[
  {"type":"ptp","ipMasq":true,"ipam":{"type":"host-local","dataDir":"/run/own","subnet":"10.2.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}},
  {"type":"firewall"}]`,
}

// faulty is one attachment on its way to a fault.
type faulty struct {
	t       *testing.T
	ns      string // the namespace's path that ADD gets
	plugins string // the folder that CNI_PATH names
	// The DEL that follows, or for GC its configuration.
	del call
	// mend, when set, is done after a first DEL that must fail.
	mend func()
}

const published = `"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":5353,"containerPort":53,"protocol":"udp"}]}`

func rootConfig(delegates, more string) string {
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"own","type":"ambi","capabilities":{"portMappings":true},"delegates":%s%s}`, delegates, more)
}

// faults are what may happen between ADD and DEL.
var faults = map[string]func(f *faulty){
	"nothing":                 func(*faulty) {},
	"namespace deleted first": func(f *faulty) { f.deleteNamespace() },
	"empty CNI_NETNS":         func(f *faulty) { f.del.netns = "" },
	"path missing":            func(f *faulty) { sh(f.t, "umount /run/alias; rm /run/alias") },
	"path now another namespace": func(f *faulty) {
		sh(f.t, "umount /run/alias; mount --bind /run/netns/other /run/alias")
	},
	"path wrong":        func(f *faulty) { f.del.netns = "/run/netns/nobody" },
	"path no namespace": func(f *faulty) { f.del.netns = "/etc/hostname" },
	"configuration edited": func(f *faulty) {
		f.del.config = rootConfig(`[{"type":"ptp","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}]`, "")
	},
	"configuration broken":  func(f *faulty) { f.del.config = `{"cniVersion":"1.1.0","name":"own","type":"ambi","delegates":17}` },
	"runtimeConfig missing": func(f *faulty) { f.del.config = strings.Replace(f.del.config, published, `"runtimeConfig":{}`, 1) },
	"record deleted":        func(f *faulty) { f.records("rm") },
	"record empty":          func(f *faulty) { f.records("truncate -s 0") },
	"record garbage":        func(f *faulty) { f.records("sed -i 1s/./garbage/") },
	"record and path lost":  func(f *faulty) { f.records("rm"); f.del.netns = "" },
	"record and namespace lost": func(f *faulty) {
		f.records("rm")
		f.deleteNamespace()
	},
	"record lost, path now another namespace": func(f *faulty) {
		f.records("rm")
		sh(f.t, "umount /run/alias; mount --bind /run/netns/other /run/alias")
	},
	"record and runtimeConfig lost": func(f *faulty) {
		f.records("truncate -s 0")
		f.del.config = strings.Replace(f.del.config, published, `"runtimeConfig":{}`, 1)
	},
	"first delegate removed":  func(f *faulty) { f.remove("bridge"); f.remove("ptp") },
	"second delegate removed": func(f *faulty) { f.remove("firewall") },
	"IPAM plugin removed":     func(f *faulty) { f.remove("host-local") },
	"delegates swapped": func(f *faulty) {
		other := stage + "/plugins"
		if f.isNew() {
			other = "/usr/lib/cni"
		}
		sh(f.t, "rm %[1]s/*; ln -s %[2]s/bridge %[2]s/ptp %[2]s/firewall %[2]s/tuning %[2]s/bandwidth %[2]s/host-local %[1]s", f.plugins, other)
	},
}

func (f *faulty) deleteNamespace() { sh(f.t, "umount /run/alias; rm /run/alias; ip netns del box") }

func (f *faulty) records(command string) {
	sh(f.t, "test -e /run/ambi/own@box@eth0.json; %s /run/ambi/own@box@eth0.json", command)
}

func (f *faulty) isNew() bool {
	target, err := os.Readlink(f.plugins + "/bridge")
	require.NoError(f.t, err)
	return strings.HasPrefix(target, stage)
}

// remove takes a delegate's binary away, and has the DEL fail until it is back.
func (f *faulty) remove(name string) {
	if strings.Contains(f.del.config, `"delegates":[],`) {
		return // the built-in network needs no program
	}
	if name == "bridge" && !strings.Contains(f.del.config, `"bridge"`) || name == "ptp" && !strings.Contains(f.del.config, `"ptp"`) {
		return
	}
	sh(f.t, "mv %[1]s/%[2]s %[1]s/away-%[2]s", f.plugins, name)
	f.mend = func() { sh(f.t, "mv %[1]s/away-%[2]s %[1]s/%[2]s", f.plugins, name) }
}

// suffer runs every fault: ADD, a conversation through a published port, the
// fault, DEL or GC; then the machine is as before.
func suffer(t *testing.T, chain, plugins, verb string) {
	dir := "/run/plugins"
	from := map[string]string{"1.10.0": stage + "/plugins/1.10.0", "1.9.1": stage + "/plugins", "1.1.1": "/usr/lib/cni"}[plugins]
	// Somebody else's container has the same addresses in another network.
	sh(t, `mkdir %[1]s; ip netns add other; ip link add strange0 type bridge; ip link add strange1 type veth peer name eth0 netns other; ip link set strange1 master strange0
for i in $(seq 2 60); do echo addr add 10.1.0.$i/32 dev eth0; echo addr add 10.2.0.$i/32 dev eth0; done | ip -n other -batch -`, dir)
	config := rootConfig(chains[chain], published)
	attach := func(t *testing.T) *faulty {
		sh(t, "ip netns add box; touch /run/alias; mount --bind /run/netns/box /run/alias; ip -n box link set lo up")
		sh(t, "rm -f %[1]s/*; for p in bridge ptp firewall tuning bandwidth host-local; do ln -s %[2]s/$p %[1]s; done", dir, from)
		call{"ADD", "box", "/run/alias", config, dir}.must(t)
		return &faulty{t: t, ns: "/run/alias", plugins: dir, del: call{"DEL", "box", "/run/alias", config, dir}}
	}
	strangers := veths()
	detach := func(t *testing.T, f *faulty) {
		if verb == "GC" {
			f.del.verb = "GC"
			f.del.config = strings.Replace(f.del.config, `"type":"ambi"`, `"type":"ambi","cni.dev/valid-attachments":[]`, 1)
		}
		if f.mend != nil {
			_, msg := f.del.fails(t)
			require.Regexp(t, "no plugin|failed to find plugin", msg)
			f.mend()
		}
		out := f.del.must(t)
		require.Empty(t, out)
		// In a namespace that was deleted first, the kernel takes its time with them.
		eventually(t, "no link is left while the namespace is there", func() bool { return veths() == strangers })
		sh(t, "umount /run/alias 2>/dev/null || :; rm -f /run/alias; ip netns del box 2>/dev/null || :; rm -f %s/*", dir)
	}
	detach(t, attach(t)) // what the delegates themselves leave of their first run
	sh(t, "rm -f /run/plugins/*")
	before := machine.Take()
	for name, strike := range faults {
		if verb == "GC" && name == "configuration broken" {
			continue // an error before anything is done
		}
		t.Run(name, func(t *testing.T) {
			f := attach(t)
			talk(t)
			strike(f)
			detach(t, f)
			requireSame(t, before)
			sh(t, "ip -n other addr show dev eth0 | grep -q 10.1.0.60")
		})
	}
}

// veths is how many the host has. Those of a namespace go with it, which would hide
// that DEL has forgotten one.
func veths() int {
	out, _ := exec.Command("ip", "-o", "link", "show", "type", "veth").Output()
	return bytes.Count(out, []byte("\n"))
}

// talk has a conversation over UDP, which connection tracking remembers.
func talk(t *testing.T) {
	t.Helper()
	stop := start(t, "ip", "netns", "exec", "box", "peer", "udp", ":53")
	defer stop()
	eventually(t, "an answer through the published port", func() bool {
		return exec.Command(stage+"/sbin/onneighbour", "peer", "ask", "udp", "192.0.2.1:5353").Run() == nil
	})
	eventually(t, "the conversation in connection tracking", func() bool {
		out, _ := exec.Command("conntrack", "-L", "-p", "udp").Output()
		return bytes.Contains(out, []byte("dport=5353"))
	})
}

// scripted is a delegate that does what /run/how-VERB says, and else passes its
// prevResult on.
const scripted = `#!/bin/sh
say() { echo "$1"; exit ${2:-0}; }
[ "$CNI_COMMAND" = VERSION ] && say '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'
how=$(cat /run/how-$CNI_COMMAND 2>/dev/null)
case $how in
fail) say '{"code":42,"msg":"no luck today"}' 1 ;;
hang) sleep 1000 & wait ;;
ignore) trap '' TERM; sleep 1000 ;;
garbage) say '}{' ;;
null) say null ;;
array) say '[]' ;;
nothing) exit 0 ;;
half) say '{"cniVersion":"1.0.0","ips":[' ;;
other) say '{"cniVersion":"9.9.9","ips":[]}' ;;
silent) exit 3 ;;
killed) kill -9 $$ ;;
daemon) sleep 1000 & ;;
wait) touch /run/waiting; until [ -e /run/go ]; do sleep 0.02; done ;;
esac
# What comes last on standard input.
[ "$CNI_COMMAND" = ADD ] && sed 's/.*"prevResult"://; s/}$//'
exit 0
`

// withScripted is ADD and DEL with a scripted delegate in the middle.
func withScripted(t *testing.T, more string) (add, del call, how func(t *testing.T, verb, what string)) {
	require.NoError(t, os.WriteFile(stage+"/sbin/scripted", []byte(scripted), 0o755))
	sh(t, "ip netns add box")
	delegates := strings.Replace(chains["bridge"], `{"type":"firewall"}`, `{"type":"firewall"},{"type":"scripted"}`, 1)
	config := rootConfig(delegates, published+more)
	path := stage + "/plugins:" + stage + "/sbin"
	add = call{"ADD", "box", "/run/netns/box", config, path}
	del = call{"DEL", "box", "/run/netns/box", config, path}
	// What it takes to be started for the first time is no matter of those who measure.
	for range 2 {
		add.must(t)
		del.must(t)
	}
	return add, del, func(t *testing.T, verb, what string) {
		sh(t, "echo %s >/run/how-%s", what, verb)
		t.Cleanup(func() { _ = os.Remove("/run/how-" + verb) })
	}
}

// misbehave has a delegate do all that a delegate should not, or this one way of
// needing longer than it may, which takes that time.
func misbehave(t *testing.T, longer string) {
	add, del, how := withScripted(t, "")
	patiently := add.config
	before := machine.Take()
	// Many times what all delegates together need, so that only the one that hangs needs
	// longer, however slow the machine is.
	began := time.Now()
	add.must(t)
	del.must(t)
	limit := max(4*time.Second, 5*time.Since(began)).Round(time.Second)
	late := fmt.Sprintf("did not finish within %s and was killed", limit)

	for what, want := range map[string]struct {
		code int
		says string
	}{
		"fail":    {42, "scripted: no luck today"},
		"hang":    {11, late},
		"ignore":  {11, late},
		"garbage": {6, "printed no result"},
		"null":    {6, "printed no result"},
		"array":   {6, "printed no result"},
		"nothing": {6, "printed no result"},
		"half":    {6, "printed no result"},
		"other":   {6, "9.9.9"},
		"silent":  {100, "exit status 3"},
		"killed":  {100, "signal: killed"},
	} {
		add.config = patiently
		if want.code == 11 && what != longer || want.code != 11 && longer != "" {
			continue
		}
		if want.code == 11 {
			add.config = strings.Replace(patiently, `"delegates"`, fmt.Sprintf(`"delegateTimeout":"%s","delegates"`, limit), 1)
		}
		t.Run("ADD "+what, func(t *testing.T) {
			how(t, "ADD", what)
			code, msg := add.fails(t)
			require.Equal(t, want.code, code, msg)
			require.Contains(t, msg, "scripted: ")
			require.Contains(t, msg, want.says)
			sh(t, "rm /run/how-ADD")
			requireSame(t, before)
		})
		if want.code == 6 {
			continue // nobody reads what a delegate prints at DEL
		}
		t.Run("DEL "+what, func(t *testing.T) {
			add.must(t)
			how(t, "DEL", what)
			code, msg := del.fails(t)
			require.Equal(t, want.code, code, msg)
			require.Contains(t, msg, want.says)
			// The address is kept while somebody's rules may be bound to it.
			require.Contains(t, msg, "bridge: not called, and the address not released")
			sh(t, "ls /run/own/own/10.1.0.*; rm /run/how-DEL")
			del.must(t)
			requireSame(t, before)
		})
	}
	if longer != "" {
		return
	}
	add.config = patiently
	t.Run("leaves a daemon", func(t *testing.T) {
		how(t, "ADD", "daemon")
		add.must(t)
		del.must(t) // and does not wait for the daemon, nor end it
		sh(t, "pkill -x sleep; rm /run/how-ADD")
		requireSame(t, before)
	})
}

// signalVerbs sends signals to verbs at work: ADD takes back what it did, DEL and
// GC go on.
func signalVerbs(t *testing.T) {
	add, del, how := withScripted(t, "")
	before := machine.Take()
	// waiting starts a verb and returns when the scripted delegate runs.
	waiting := func(t *testing.T, c call) (*exec.Cmd, *bytes.Buffer) {
		how(t, c.verb, "wait")
		cmd := c.command()
		var out bytes.Buffer
		cmd.Stdout = &out
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		eventually(t, "the delegate", func() bool { _, err := os.Stat("/run/waiting"); return err == nil })
		sh(t, "rm /run/waiting")
		return cmd, &out
	}
	for _, s := range []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		t.Run("ADD "+s.String(), func(t *testing.T) {
			cmd, out := waiting(t, add)
			require.NoError(t, cmd.Process.Signal(s))
			require.Error(t, cmd.Wait())
			require.Contains(t, out.String(), `"code": 11`)
			require.Contains(t, out.String(), "ADD was ended by signal")
			sh(t, "rm /run/how-ADD")
			requireSame(t, before)
		})
		t.Run("DEL "+s.String(), func(t *testing.T) {
			add.must(t)
			cmd, out := waiting(t, del)
			require.NoError(t, cmd.Process.Signal(s))
			require.NoError(t, cmd.Process.Signal(s))
			sh(t, "touch /run/go")
			require.NoError(t, cmd.Wait())
			require.Empty(t, out.String())
			sh(t, "rm /run/go /run/how-DEL")
			requireSame(t, before)
		})
	}
	t.Run("nobody reads the result", func(t *testing.T) {
		cmd := add.command()
		r, w, err := os.Pipe()
		require.NoError(t, err)
		require.NoError(t, r.Close())
		cmd.Stdout, cmd.Stderr = w, w
		require.Error(t, cmd.Run())
		require.Equal(t, 1, cmd.ProcessState.ExitCode(), "ended by itself")
		require.NoError(t, w.Close())
		requireSame(t, before)
	})
}
