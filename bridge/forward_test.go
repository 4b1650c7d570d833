package bridge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// iptablesOnly hides every program but stand-ins for iptables that write down that
// they were started, and returns what was written.
func iptablesOnly(t *testing.T) (started func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, name := range []string{"iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip("needs " + name)
		}
		script := fmt.Sprintf("#!/bin/sh\necho %s \"$@\" >>%s\nexec %s \"$@\"\n", name, log, path)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	}
	t.Setenv("PATH", dir)
	return func() string {
		b, _ := os.ReadFile(log)
		os.Remove(log)
		return string(b)
	}
}

// Where the host's firewall drops what is forwarded, as Docker has it, a network gets
// its rules with the first container and loses them with the last; where it does not,
// no program is started.
func TestForwardingDropped(t *testing.T) {
	for _, variant := range []string{"-nft", "-legacy"} {
		t.Run(variant[1:], func(t *testing.T) {
			path := os.Getenv("PATH")
			started := iptablesOnly(t)
			quietly := func(l *lab, argv ...string) string {
				hidden := os.Getenv("PATH")
				os.Setenv("PATH", path)
				defer os.Setenv("PATH", hidden)
				return l.run(t, argv...)
			}
			hidden := os.Getenv("PATH")
			os.Setenv("PATH", path)
			l := newLab(t)
			serviceAddr := serve(t, l.client, "tcp", "198.51.100.2:0")
			// Chains that are there, and accept.
			for _, program := range []string{"iptables", "ip6tables"} {
				l.run(t, "sh", "-ec", program+variant+" -A FORWARD -j RETURN; "+program+variant+" -D FORWARD -j RETURN")
			}
			os.Setenv("PATH", hidden)
			n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
			a := l.join(t, n, "a")
			l.del(t, a, a.result)
			require.Empty(t, started(), "nothing is dropped")

			for _, program := range []string{"iptables", "ip6tables"} {
				quietly(l, program+variant, "-P", "FORWARD", "DROP")
			}
			rules := func() string {
				return quietly(l, "sh", "-c", "iptables"+variant+" -S FORWARD; ip6tables"+variant+" -S FORWARD")
			}
			before := rules()
			a = l.join(t, n, "a")
			require.Equal(t, 2, strings.Count(rules(), `-i ambi-web -m comment --comment "ambi network web" -j ACCEPT`), rules())
			require.Equal(t, 2, strings.Count(rules(), `-o ambi-web -m comment --comment "ambi network web" -j ACCEPT`))
			require.Contains(t, started(), "iptables"+variant)
			require.Equal(t, a.ip(4) != "", connect(t, a.space, serviceAddr) == "198.51.100.1")
			b := l.join(t, n, "b")
			require.Empty(t, started(), "the rules are there")
			l.del(t, b, b.result)
			require.Empty(t, started(), "the network is still there")

			quietly(l, "iptables"+variant, "-D", "FORWARD", "-i", "ambi-web", "-m", "comment", "--comment", "ambi network web", "-j", "ACCEPT")
			quietly(l, "iptables"+variant, "-D", "FORWARD", "-o", "ambi-web", "-m", "comment", "--comment", "ambi network web", "-j", "ACCEPT")
			require.ErrorContains(t, l.check(t, a), "chain FORWARD drops, and has no rule for bridge ambi-web")
			l.on(t, n, func() { require.NoError(t, n.Restore(patience(t), []Attached{{a.request.Key, a.result}})) })
			require.NoError(t, l.check(t, a))
			l.del(t, a, a.result)
			require.Equal(t, before, rules())

			// No iptables to add the rules with.
			started()
			t.Setenv("PATH", t.TempDir())
			m := newMember(t, n, "c")
			require.ErrorContains(t, l.add(t, m), `network "web": the host's firewall drops by the policy of its chain FORWARD, and accepting what bridge ambi-web passes on failed`)
		})
	}
}

// Where the host's firewall drops what is for the host, as ufw has it, a network with names
// has its name server asked all the same, and another one nothing.
func TestInputDropped(t *testing.T) {
	for _, variant := range []string{"-nft", "-legacy"} {
		t.Run(variant[1:], func(t *testing.T) {
			for _, program := range []string{"iptables", "ip6tables"} {
				if _, err := exec.LookPath(program + variant); err != nil {
					t.Skip("needs " + program + variant)
				}
			}
			l := newLab(t)
			for _, chain := range []string{"INPUT", "FORWARD"} {
				for _, program := range []string{"iptables", "ip6tables"} {
					l.run(t, program+variant, "-P", chain, "DROP")
				}
			}
			// Somebody's own, which name the bridge too.
			l.run(t, "iptables"+variant, "-A", "INPUT", "-i", "ambi-web", "-p", "tcp", "--dport", "22", "-j", "DROP")
			l.run(t, "iptables"+variant, "-A", "FORWARD", "-i", "ambi-web", "-d", "198.51.100.77", "-m", "comment", "--comment", "ambi network web2", "-j", "DROP")
			l.run(t, "iptables"+variant, "-A", "INPUT", "-j", "REJECT")
			rules := func() string {
				return l.run(t, "sh", "-c", "iptables"+variant+" -S; ip6tables"+variant+" -S")
			}
			before := rules()
			n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
			a := l.join(t, n, "a")
			require.NotContains(t, rules(), "--dport 53")
			l.del(t, a, a.result)

			n.Config.Names = true
			a = l.join(t, n, "a")
			for _, protocol := range []string{"udp", "tcp"} {
				rule := "-A INPUT -i ambi-web -p " + protocol + " -m " + protocol + ` --dport 53 -m comment --comment "ambi network web" -j ACCEPT`
				require.Equal(t, 2, strings.Count(rules(), rule), rules())
				require.Less(t, strings.Index(rules(), rule), strings.Index(rules(), "-j REJECT"))
			}
			require.Equal(t, 2, strings.Count(rules(), `-A FORWARD -i ambi-web -m comment --comment "ambi network web" -j ACCEPT`), rules())
			require.NoError(t, l.check(t, a))
			opened := rules()
			for _, lost := range []int{2, 1} {
				for range lost {
					l.run(t, "iptables"+variant, "-D", "INPUT", "1")
				}
				require.ErrorContains(t, l.check(t, a), "chain INPUT drops, and has no rule for bridge ambi-web")
				l.on(t, n, func() { require.NoError(t, n.Restore(patience(t), []Attached{{a.request.Key, a.result}})) })
				require.NoError(t, l.check(t, a))
				require.Len(t, rules(), len(opened), rules())
			}
			l.run(t, "iptables"+variant, "-D", "INPUT", "1")
			l.del(t, a, a.result)
			require.Equal(t, before, rules())
		})
	}
}

// fakeBus is a message bus on which firewalld may be.
type fakeBus struct {
	mu    sync.Mutex
	calls []string
	there bool
}

func newFakeBus(t *testing.T) (*fakeBus, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	b := &fakeBus{there: true}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(c)
		}
	}()
	return b, path
}

func (b *fakeBus) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "\x00AUTH EXTERNAL ") {
		return
	}
	fmt.Fprint(c, "OK 0123456789abcdef\r\n")
	if line, err := in.ReadString('\n'); err != nil || line != "BEGIN\r\n" {
		return
	}
	for {
		head := make([]byte, 16)
		if _, err := readFull(in, head); err != nil {
			return
		}
		body, serial, fields := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:]), binary.LittleEndian.Uint32(head[12:])
		rest := make([]byte, (fields+7)&^7+body)
		if _, err := readFull(in, rest); err != nil {
			return
		}
		_, _ = c.Write(b.answer(serial, rest))
	}
}

func readFull(r *bufio.Reader, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := r.Read(b[n:])
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// answer answers a call, after a signal that nobody asked for.
func (b *fakeBus) answer(serial uint32, message []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	reply := func(kind byte, errorName, text string) []byte {
		fields := binary.LittleEndian.AppendUint32([]byte{fieldReplySerial, 1, 'u', 0}, serial)
		if errorName != "" {
			fields = busText(append(fields, fieldErrorName, 1, 's', 0), errorName)
		}
		body := busText(nil, text)
		m := binary.LittleEndian.AppendUint32([]byte{'l', kind, 0, 1}, uint32(len(body)))
		m = binary.LittleEndian.AppendUint32(m, 99)
		m = binary.LittleEndian.AppendUint32(m, uint32(len(fields)))
		return append(busAlign(append(m, fields...), 8), body...)
	}
	signal := []byte{'l', 4, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}
	for _, method := range []string{"addSource", "removeSource"} {
		if bytes.Contains(message, []byte(method)) {
			if !b.there {
				return append(signal, reply(busError, "org.freedesktop.DBus.Error.ServiceUnknown", "The name is not activatable")...)
			}
			text := strings.Map(func(r rune) rune {
				if r < ' ' {
					return ' '
				}
				return r
			}, string(message[bytes.LastIndex(message, []byte("trusted")):]))
			b.calls = append(b.calls, method+" "+strings.Join(strings.Fields(text), " "))
			if method == "addSource" && strings.Count(strings.Join(b.calls, "\n"), method) > 2 {
				return append(signal, reply(busError, "org.fedoraproject.FirewallD1.Exception", "ZONE_ALREADY_SET: 10.88.5.0/24")...)
			}
		}
	}
	return append(signal, reply(busReply, "", "trusted")...)
}

// With firewalld, a network is in the zone trusted while it has containers.
func TestFirewalld(t *testing.T) {
	l := newLab(t)
	b, path := newFakeBus(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	with := func(f func()) {
		l.on(t, n, func() {
			n.Host.DBus = path
			f()
		})
	}
	add := func(m *member) {
		with(func() {
			c, err := OpenContainer("/test", m.File())
			require.NoError(t, err)
			defer c.Close()
			m.result, err = n.Add(patience(t), c, m.request)
			require.NoError(t, err)
		})
	}
	one, two := newMember(t, n, "one"), newMember(t, n, "two")
	add(one)
	require.Equal(t, []string{"addSource trusted 10.88.5.0/24", "addSource trusted fd88::/64"}, b.calls)
	add(two)
	require.Len(t, b.calls, 2, "once for each network")
	with(func() { require.NoError(t, n.Restore(patience(t), nil)) }) // it is there already
	require.Len(t, b.calls, 4)
	with(func() {
		require.NoError(t, n.Del(patience(t), one.request.Key, one.result))
		require.NoError(t, n.Del(patience(t), two.request.Key, two.result))
	})
	require.Equal(t, []string{"removeSource trusted 10.88.5.0/24", "removeSource trusted fd88::/64"}, b.calls[4:])
	b.there = false
	add(one)
	with(func() { require.NoError(t, n.Del(patience(t), one.request.Key, one.result)) })
	require.Len(t, b.calls, 6)
}

// realBus starts a message bus and returns the path of its socket.
func realBus(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "conf")
	require.NoError(t, os.WriteFile(config, []byte(`<busconfig><type>session</type><listen>unix:path=`+dir+`/bus</listen>
		<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`), 0o644))
	cmd := exec.Command(program, "--config-file="+config, "--nofork")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	require.Eventually(t, func() bool { // its name is there before it listens
		c, err := net.Dial("unix", dir+"/bus")
		if err == nil {
			c.Close()
		}
		return err == nil
	}, time.Minute, time.Millisecond)
	return dir + "/bus"
}

// A real bus lets us in, and says that nobody is there.
func TestRealBus(t *testing.T) {
	path := realBus(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := dialBus(ctx, path)
	require.NoError(t, err)
	defer b.Close()
	const name = "org.freedesktop.DBus"
	require.NoError(t, b.call(name, "/org/freedesktop/DBus", name, "ListNames"))
	require.ErrorContains(t, b.call(name, "/org/freedesktop/DBus", name, "NoSuchMethod"), "org.freedesktop.DBus.Error.UnknownMethod: ")
	require.ErrorIs(t, b.call("org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone", "addSource", "trusted", "10.88.5.0/24"), errNoService)
}

// busRaw is a message of any kind; without a destination it is for everybody.
func busRaw(kind byte, serial uint32, destination, path, iface, member, signature string, body []byte) []byte {
	m := busMessage(serial, destination, path, iface, member, nil)
	fields := m[16 : 16+binary.LittleEndian.Uint32(m[12:])]
	if destination == "" { // the last field, with an empty name
		fields = bytes.TrimRight(fields[:bytes.LastIndex(fields, []byte{fieldDestination, 1, 's', 0})], "\x00")
		fields = fields[:len(fields)+1] // the text before it ends with one
	}
	if signature != "" {
		fields = append(busAlign(bytes.Clone(fields), 8), fieldSignature, 1, 'g', 0, byte(len(signature)))
		fields = append(append(fields, signature...), 0)
	}
	out := []byte{'l', kind, busNoAutoStart, 1}
	out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
	out = binary.LittleEndian.AppendUint32(out, serial)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(fields)))
	return append(busAlign(append(out, fields...), 8), body...)
}

// Whatever is to be restored is restored at once, when firewalld comes, and when it has
// loaded its rules anew; not when somebody else says so.
func TestWatchFirewalld(t *testing.T) {
	path := realBus(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	times, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		ended <- WatchFirewalld(ctx, path, func() error { times <- struct{}{}; return nil })
	}()
	again := func(why string) {
		t.Helper()
		select {
		case <-times:
		case err := <-ended:
			t.Fatalf("%s: it has ended: %v", why, err)
		case <-time.After(time.Minute):
			t.Fatal(why)
		}
	}
	again("at once")
	timely, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	const name, object = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
	other, err := dialBus(timely, path)
	require.NoError(t, err)
	defer other.Close()
	reloaded := busRaw(busSignal, 7, "", object, name, "Reloaded", "", nil)
	_, err = other.Write(reloaded)
	require.NoError(t, err)
	const daemon = "org.freedesktop.DBus"
	require.NoError(t, other.call(daemon, "/org/freedesktop/DBus", daemon, "ListNames")) // its signal has been passed on
	firewalld, err := dialBus(timely, path)
	require.NoError(t, err)
	defer firewalld.Close()
	_, err = firewalld.Write(busRaw(busCall, 7, daemon, "/org/freedesktop/DBus", daemon, "RequestName", "su", append(busAlign(busText(nil, name), 4), 0, 0, 0, 0)))
	require.NoError(t, err)
	again("firewalld has come")
	require.Empty(t, times, "somebody else's signal")
	for range 3 {
		_, err = firewalld.Write(reloaded)
		require.NoError(t, err)
		again("firewalld has loaded its rules")
	}
	firewalld.Close()
	again("firewalld has gone")
	cancel()
	require.NoError(t, <-ended)
	require.ErrorContains(t, WatchFirewalld(context.Background(), t.TempDir()+"/bus", nil), "the system bus: ")
}
