package nat

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// requireCode wants the words in what an error says or in its remedy.
func requireCode(t *testing.T, code uint, err error, words ...string) {
	t.Helper()
	var e *types.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, e.Msg)
	for _, w := range words {
		require.Contains(t, e.Msg+"; "+e.Details, w)
	}
}

// TestConflicts shows which ports exclude each other, that the error names who
// has the port, and that a refused Add changes nothing.
func TestConflicts(t *testing.T) {
	tests := []struct {
		name       string
		has, wants conf.PortMapping
		refused    bool
	}{
		{"same port", port(conf.TCP, "", 80, 80), port(conf.TCP, "", 80, 81), true},
		{"same address", port(conf.TCP, hostAddr, 80, 80), port(conf.TCP, hostAddr, 80, 80), true},
		{"same IPv6 address", port(conf.TCP, hostAddr6, 80, 80), port(conf.TCP, hostAddr6, 80, 80), true},
		{"every address, then one", port(conf.TCP, "", 80, 80), port(conf.TCP, hostAddr, 80, 80), true},
		{"one address, then every", port(conf.TCP, hostAddr, 80, 80), port(conf.TCP, "", 80, 80), true},
		{"one IPv6 address, then every", port(conf.UDP, hostAddr6, 80, 80), port(conf.UDP, "", 80, 80), true},
		{"0.0.0.0, then one", port(conf.TCP, "0.0.0.0", 80, 80), port(conf.TCP, hostAddr, 80, 80), true},
		{"two addresses", port(conf.TCP, hostAddr, 80, 80), port(conf.TCP, otherAddr, 80, 80), false},
		{"two protocols", port(conf.TCP, "", 80, 80), port(conf.UDP, "", 80, 80), false},
		{"two families", port(conf.TCP, "0.0.0.0", 80, 80), port(conf.TCP, "::", 80, 80), false},
		{"two ports", port(conf.TCP, "", 80, 80), port(conf.TCP, "", 81, 80), false},
		{"sctp", port(conf.SCTP, "", 80, 80), port(conf.SCTP, "", 80, 80), true},
	}
	backends(t, func(t *testing.T, backend conf.Backend) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				l := &lab{host: newSpace(t), backend: backend}
				p := publishWeb(tt.has)
				l.add(t, p)
				before := l.host.rules(t)
				err := l.tryAdd(t, publishTwin(port(conf.TCP, "", 7000, 80), tt.wants))
				if !tt.refused {
					require.NoError(t, err)
					require.NoError(t, l.check(t, publishTwin(port(conf.TCP, "", 7000, 80), tt.wants)))
				} else {
					requireCode(t, conf.ErrPortInUse, err, "published by container web of network lab", "80/"+string(tt.has.Protocol))
					require.Equal(t, before, l.host.rules(t))
				}
				require.NoError(t, l.check(t, p))
			})
		}
	})
}

// TestAddTwice shows that a second Add of an owner is refused and harms nothing.
func TestAddTwice(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := &lab{host: newSpace(t), backend: backend}
		p := publishWeb(port(conf.TCP, "", 80, 80))
		l.add(t, p)
		requireCode(t, conf.ErrPortInUse, l.tryAdd(t, publishWeb(port(conf.TCP, "", 81, 80))), "published already")
		require.NoError(t, l.check(t, p))
	})
}

// TestHostSockets shows which sockets of the host keep a port from being
// published.
func TestHostSockets(t *testing.T) {
	self := fmt.Sprintf("(pid %d)", os.Getpid())
	tests := []struct {
		name, network, addr string
		wants               conf.PortMapping
		refused             bool
	}{
		{"tcp on every address", "tcp", ":80", port(conf.TCP, "", 80, 80), true},
		{"tcp on IPv4", "tcp4", "0.0.0.0:80", port(conf.TCP, "127.0.0.1", 80, 80), true},
		{"tcp on IPv6 that takes IPv4 too", "tcp", "[::]:80", port(conf.TCP, "127.0.0.1", 80, 80), true},
		{"tcp on IPv6 only", "tcp6", "[::]:80", port(conf.TCP, "0.0.0.0", 80, 80), false},
		{"tcp on loopback, published everywhere", "tcp", "127.0.0.1:80", port(conf.TCP, "", 80, 80), true},
		{"tcp on loopback, published elsewhere", "tcp", "127.0.0.1:80", port(conf.TCP, hostAddr, 80, 80), false},
		{"udp", "udp", ":80", port(conf.UDP, "", 80, 80), true},
		{"udp, published for tcp", "udp", ":80", port(conf.TCP, "", 80, 80), false},
	}
	t.Parallel()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
			l.host.do(t, func() {
				if strings.HasPrefix(tt.network, "udp") {
					c, err := net.ListenPacket(tt.network, tt.addr)
					require.NoError(t, err)
					t.Cleanup(func() { _ = c.Close() })
					return
				}
				c, err := net.Listen(tt.network, tt.addr)
				require.NoError(t, err)
				t.Cleanup(func() { _ = c.Close() })
			})
			err := l.tryAdd(t, publishWeb(tt.wants))
			if !tt.refused {
				require.NoError(t, err)
				return
			}
			requireCode(t, conf.ErrPortInUse, err, "bound by a socket of the host", self)
			require.Empty(t, l.host.rules(t))
		})
	}
}

// TestOutgoingConnection shows that the local port of a connection to elsewhere
// can be published.
func TestOutgoingConnection(t *testing.T) {
	t.Parallel()
	l := newLab(t, conf.BackendNFTables)
	l.web.serve(t, "web", 80)
	var local uint16
	l.host.do(t, func() {
		tcp, err := net.Dial("tcp", webAddr+":80")
		require.NoError(t, err)
		t.Cleanup(func() { _ = tcp.Close() })
		local = netip.MustParseAddrPort(tcp.LocalAddr().String()).Port()
		udp, err := net.DialUDP("udp", &net.UDPAddr{Port: int(local)}, &net.UDPAddr{IP: net.ParseIP(webAddr), Port: 80})
		require.NoError(t, err)
		t.Cleanup(func() { _ = udp.Close() })
	})
	l.add(t, publishWeb(port(conf.TCP, "", local, 80), port(conf.UDP, "", local, 80)))
}

// TestDel shows that Del finds what its owner has however little it is told, and
// nothing else.
func TestDel(t *testing.T) {
	ports := []conf.PortMapping{port(conf.TCP, "", 80, 80), port(conf.UDP, hostAddr, 53, 53), port(conf.TCP, hostAddr6, 443, 443)}
	told := map[string]func(*Published){
		"everything":   func(*Published) {},
		"no ports":     func(p *Published) { p.Ports = nil },
		"no addresses": func(p *Published) { p.IPs = nil },
		"nothing":      func(p *Published) { p.Ports, p.IPs = nil, nil },
		"some ports":   func(p *Published) { p.Ports = p.Ports[1:2] },
		"other ports": func(p *Published) {
			p.Ports = []conf.PortMapping{port(conf.TCP, "", 1, 1), port(conf.TCP, hostAddr, 1080, 80)}
		},
		"other address":  func(p *Published) { p.IPs = []netip.Addr{netip.MustParseAddr("10.9.9.9")} },
		"other SNAT":     func(p *Published) { p.SNAT = false },
		"the twin's own": func(p *Published) { p.Ports = []conf.PortMapping{port(conf.TCP, hostAddr, 1080, 80)} },
	}
	backends(t, func(t *testing.T, backend conf.Backend) {
		for name, forget := range told {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				l := &lab{host: newSpace(t), backend: backend}
				l.host.run(t, "ip", "link", "add", "br0", "type", "bridge")
				l.host.run(t, "ip", "address", "add", bridgeAddr+"/24", "dev", "br0")
				l.host.run(t, "ip", "link", "set", "br0", "up")
				if backend == conf.BackendIPTables {
					l.host.prime(t)
				}
				before := l.host.rules(t)
				twin := publishTwin(port(conf.TCP, hostAddr, 1080, 80), port(conf.UDP, otherAddr, 53, 53))
				l.add(t, twin)
				withTwin := l.host.rules(t)
				p := publishWeb(ports...)
				l.add(t, p)
				forget(&p)
				l.del(t, p)
				require.Equal(t, withTwin, l.host.rules(t))
				l.del(t, p)
				require.NoError(t, l.check(t, twin))
				l.del(t, publishTwin())
				require.Equal(t, before, l.host.rules(t))
				l.del(t, twin)
			})
		}
	})
}

// TestReuse shows that a late Del harms nobody who has the address or the port
// now.
func TestReuse(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		l.web.serve(t, "web", 80)
		before := l.host.rules(t)
		old := publish("old", []string{webAddr, webAddr6}, port(conf.TCP, "", 8080, 80))
		l.add(t, old)
		// The address goes to another container while the old one is still there.
		heir := publishWeb(port(conf.TCP, "", 9090, 80))
		l.add(t, heir)
		l.del(t, old)
		require.NoError(t, l.check(t, heir))
		answer, err := l.host.ask(t, "tcp", "127.0.0.1:9090")
		require.NoError(t, err)
		require.Equal(t, "web saw "+bridgeAddr, answer)
		// The port goes to another container after a flush.
		l.add(t, old)
		l.flush(t)
		thief := publishTwin(port(conf.TCP, "", 8080, 80))
		l.add(t, thief)
		l.del(t, old)
		require.NoError(t, l.check(t, thief))
		l.del(t, thief)
		l.del(t, heir)
		require.Equal(t, before, l.host.rules(t))
	})
}

// flush is a firewall reload that knows nothing of us.
func (l *lab) flush(t *testing.T) {
	t.Helper()
	if l.backend == conf.BackendNFTables {
		l.host.run(t, "nft", "flush", "ruleset")
		return
	}
	for _, command := range []string{"-F", "-X"} {
		for _, program := range []string{"iptables", "ip6tables"} {
			l.host.run(t, program, "-t", "nat", command)
		}
		l.host.run(t, "iptables", "-t", "raw", command)
	}
}

// TestRestore shows that what a reload flushed is missed and comes back, once.
func TestRestore(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		l.web.serve(t, "web", 80)
		l.twin.serve(t, "twin", 80)
		before := l.host.rules(t)
		web := publishWeb(port(conf.TCP, "", 8080, 80), port(conf.UDP, hostAddr, 53, 80), port(conf.UDP, otherAddr, 53, 80))
		twin := publishTwin(port(conf.TCP, hostAddr, 9090, 80))
		l.add(t, web)
		l.add(t, twin)
		full := l.host.rules(t)
		l.flush(t)
		err := l.check(t, web)
		requireCode(t, conf.ErrNetwork, err, "missing", "ambi restore")
		require.ElementsMatch(t, []conf.Key{web.Owner, twin.Owner}, l.restored(t, web, twin))
		require.Empty(t, l.restored(t, web, twin))
		require.ElementsMatch(t, strings.Fields(full), strings.Fields(l.host.rules(t)))
		require.NoError(t, l.check(t, web))
		require.NoError(t, l.check(t, twin))
		answer, err := l.client.ask(t, "tcp", hostAddr+":8080")
		require.NoError(t, err)
		require.Equal(t, "web saw "+clientAddr, answer)
		l.del(t, web)
		l.del(t, twin)
		require.Equal(t, before, l.host.rules(t))
	})
}

// TestFree shows that a port which is taken is found before anything is done, with
// nothing known of the container but the families of its addresses.
func TestFree(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		before := l.host.rules(t)
		asked := func(ips []string, ports ...conf.PortMapping) error { return l.free(t, publish("new", ips, ports...)) }
		both, only6 := []string{"0.0.0.0", "::"}, []string{"::"}
		require.NoError(t, asked(both, port(conf.TCP, "", 8080, 80)))
		require.Equal(t, before, l.host.rules(t))

		l.add(t, publishWeb(port(conf.UDP, hostAddr, 53, 53)))
		l.add(t, publish("four", []string{twinAddr}, port(conf.TCP, "", 8080, 80)))
		rules := l.host.rules(t)
		requireCode(t, conf.ErrPortInUse, asked(both, port(conf.TCP, "", 8080, 1)), "8080/tcp", "container four")
		requireCode(t, conf.ErrPortInUse, asked(both, port(conf.TCP, hostAddr, 8080, 1)), "container four")
		requireCode(t, conf.ErrPortInUse, asked(both, port(conf.UDP, "", 53, 1)), "container web")
		require.NoError(t, asked(both, port(conf.UDP, otherAddr, 53, 1), port(conf.TCP, "", 8081, 80), port(conf.UDP, "", 8080, 80)))
		require.NoError(t, asked(only6, port(conf.TCP, "", 8080, 1)))
		err := l.free(t, publishWeb(port(conf.TCP, "", 9, 9)))
		requireCode(t, conf.ErrPortInUse, err, "published already")
		require.Equal(t, rules, l.host.rules(t))
	})
}

// TestRestoreConflict shows that one record whose port went to somebody else does
// not keep the others from coming back.
func TestRestoreConflict(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := &lab{host: newSpace(t), backend: backend}
		heir := publishTwin(port(conf.TCP, hostAddr, 80, 80))
		l.add(t, heir)
		other := publish("other", []string{"10.88.0.9"}, port(conf.TCP, "", 81, 80))
		err := l.restore(t, publishWeb(port(conf.TCP, "", 80, 80)), other)
		requireCode(t, conf.ErrPortInUse, err, "container twin")
		require.NoError(t, l.check(t, other))
		require.NoError(t, l.check(t, heir))
	})
}

// TestCheck shows that what is missing or different is named, and that nothing is
// changed.
func TestCheck(t *testing.T) {
	t.Parallel()
	l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
	web := publishWeb(port(conf.TCP, "", 80, 80), port(conf.UDP, hostAddr, 53, 53))
	l.add(t, web)
	for command, words := range map[string]string{
		"delete element inet ambi_portmap ip_ports { tcp . 80 }":                         "host port 0.0.0.0:80/tcp to 10.88.0.2:80 is missing",
		"delete element inet ambi_portmap ip_hosted { 192.0.2.1 . udp . 53 }":            "host port 192.0.2.1:53/udp to 10.88.0.2:53 is missing",
		"delete element inet ambi_portmap ip6_snat { fd88::2 . fd88::2 }":                "an entry of the container in ip6_snat is missing",
		"flush chain inet ambi_portmap postrouting":                                      "chain postrouting of table ambi_portmap has 0 of 1 rules",
		"flush map inet ambi_portmap owners":                                             "owner's entry",
		"flush table inet ambi_portmap":                                                  "chain ports of table ambi_portmap has 0 of 4 rules",
		"delete table inet ambi_portmap":                                                 "table inet ambi_portmap is missing",
		"flush chain inet ambi_portmap output; delete chain inet ambi_portmap output":    "chain output of table ambi_portmap is missing",
		"flush chain inet ambi_portmap guard; add rule inet ambi_portmap guard continue": "",
	} {
		l.host.run(t, "nft", command)
		before := l.host.rules(t)
		err := l.check(t, web)
		if words != "" {
			requireCode(t, conf.ErrNetwork, err, words)
		}
		require.Equal(t, before, l.host.rules(t))
		require.NoError(t, l.restore(t, web))
		require.NoError(t, l.check(t, web), command)
	}
	l.del(t, web)
	require.Empty(t, l.host.rules(t))
}

// TestSavedRuleset shows that our table survives being saved and loaded by nft.
func TestSavedRuleset(t *testing.T) {
	t.Parallel()
	l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
	web := publishWeb(port(conf.TCP, "", 80, 80), port(conf.UDP, hostAddr, 53, 53))
	l.add(t, web)
	saved := t.TempDir() + "/saved"
	require.NoError(t, os.WriteFile(saved, []byte(l.host.rules(t)), 0o600))
	l.flush(t)
	l.host.run(t, "nft", "-f", saved)
	require.NoError(t, l.check(t, web))
	l.del(t, publishWeb())
	require.Empty(t, l.host.rules(t))
}

// TestOwners lists by network.
func TestOwners(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := &lab{host: newSpace(t), backend: backend}
		web, twin := publishWeb(port(conf.TCP, "", 80, 80)), publishTwin(port(conf.TCP, "", 81, 80))
		twin.Owner.Network = "other"
		l.add(t, web)
		l.add(t, twin)
		for network, want := range map[string][]conf.Key{"lab": {web.Owner}, "other": {twin.Owner}, "none": nil} {
			require.NoError(t, l.inHost(t, func(b Backend) error {
				got, err := b.Owners(t.Context(), network)
				require.Equal(t, want, got)
				return err
			}))
		}
		require.NoError(t, l.inHost(t, func(b Backend) error {
			got, err := b.Owners(t.Context(), "")
			require.ElementsMatch(t, []conf.Key{web.Owner, twin.Owner}, got)
			return err
		}))
	})
}

// TestManyPorts publishes a thousand ports at once.
func TestManyPorts(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		if strings.HasSuffix(t.Name(), "iptables-nft") {
			needLongMessages(t)
		}
		l := newLab(t, backend)
		l.web.serve(t, "web", 80)
		before := l.host.rules(t)
		p := publishWeb()
		for n := range uint16(1000) {
			p.Ports = append(p.Ports, port(conf.TCP, []string{"", hostAddr}[n%2], 10000+n, 80))
		}
		l.add(t, p)
		require.NoError(t, l.check(t, p))
		for _, n := range []string{"10000", "10999"} {
			_, err := l.client.ask(t, "tcp", hostAddr+":"+n)
			require.NoError(t, err)
		}
		l.del(t, p)
		require.Equal(t, before, l.host.rules(t))
	})
}

// TestConcurrent adds and deletes a hundred attachments at once, each on its own
// thread as in a process of its own; with iptables, which takes a dozen programs for
// each, a quarter of that.
func TestConcurrent(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := &lab{host: newSpace(t), backend: backend}
		if backend == conf.BackendIPTables {
			l.host.prime(t)
		}
		before := l.host.rules(t)
		errs := make([]error, 100)
		if backend == conf.BackendIPTables {
			errs = errs[:25]
		}
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				p := publish(fmt.Sprintf("c%d", i), []string{fmt.Sprintf("10.88.1.%d", i+1)},
					port(conf.TCP, "", uint16(1000+i), 80), port(conf.UDP, "127.0.0.1", 53+uint16(i%2)*uint16(i), 53)) // some meet
				errs[i] = l.inHost(t, func(b Backend) error { return addCheckDel(t, b, p) })
			})
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		require.Equal(t, before, l.host.rules(t))
	})
}

// TestConcurrentChanges does the same while somebody else changes the ruleset all
// the time, so that transactions against a generation are refused again and again.
func TestConcurrentChanges(t *testing.T) {
	t.Parallel()
	l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
	stop := make(chan struct{})
	var noise, work sync.WaitGroup
	noise.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				l.host.run(t, "nft", "add table ip noise; delete table ip noise")
			}
		}
	})
	for i := range 20 {
		work.Go(func() {
			p := publish(fmt.Sprintf("c%d", i), []string{"10.88.1.1"}, port(conf.TCP, "", uint16(1000+i), 80))
			for range 3 {
				if err := l.inHost(t, func(b Backend) error { return addDel(t, b, p) }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	close(stop)
	noise.Wait()
	require.Empty(t, l.host.rules(t))
}

func addDel(t *testing.T, b Backend, p Published) error {
	if err := b.Add(t.Context(), p); err != nil {
		return err
	}
	return b.Del(t.Context(), p)
}

// addCheckDel is an attachment's life. A port that somebody else has is tried
// without.
func addCheckDel(t *testing.T, b Backend, p Published) error {
	err := b.Add(t.Context(), p)
	if isConflict(err) {
		p.Ports = p.Ports[:1]
		err = b.Add(t.Context(), p)
	}
	if err == nil {
		err = b.Check(t.Context(), p)
	}
	if err == nil {
		err = b.Del(t.Context(), p)
	}
	return err
}

// TestNoPorts shows that nothing is done, nor any process started, when there is
// nothing to publish.
func TestNoPorts(t *testing.T) {
	l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
	for _, b := range []Backend{backend{nftRules{}}, backend{iptRules{v4: true, v6: true}}} {
		l.host.do(t, func() {
			require.NoError(t, b.Add(t.Context(), publishWeb()))
			require.NoError(t, b.Check(t.Context(), publishWeb()))
			_, err := b.Free(t.Context(), publishWeb())
			require.NoError(t, err)
			restored, err := b.Restore(t.Context(), []Published{publishWeb()})
			require.NoError(t, err)
			require.Empty(t, restored)
		})
	}
	l.del(t, publishWeb())
	require.Empty(t, l.host.rules(t))
}

// TestForwards is how port mappings resolve to families, and what is refused.
func TestForwards(t *testing.T) {
	tests := []struct {
		name    string
		ips     []string
		mapping conf.PortMapping
		want    []string
		code    uint
	}{
		{"both families", []string{webAddr, webAddr6}, port(conf.TCP, "", 1, 2), []string{"0.0.0.0:1/tcp to 10.88.0.2:2", "[::]:1/tcp to [fd88::2]:2"}, 0},
		{"first of each family", []string{webAddr, twinAddr}, port(conf.UDP, "", 1, 2), []string{"0.0.0.0:1/udp to 10.88.0.2:2"}, 0},
		{"IPv6 only", []string{webAddr6}, port(conf.SCTP, "", 1, 2), []string{"[::]:1/sctp to [fd88::2]:2"}, 0},
		{"one family asked for", []string{webAddr, webAddr6}, port(conf.TCP, "::", 1, 2), []string{"[::]:1/tcp to [fd88::2]:2"}, 0},
		{"one address", []string{webAddr, webAddr6}, port(conf.TCP, "127.0.0.1", 1, 2), []string{"127.0.0.1:1/tcp to 10.88.0.2:2"}, 0},
		{"family that the container lacks", []string{webAddr}, port(conf.TCP, "fd99::1", 1, 2), nil, types.ErrInvalidNetworkConfig},
		{"every IPv6 address, container with IPv4 only", []string{webAddr}, port(conf.TCP, "::", 1, 2), nil, types.ErrInvalidNetworkConfig},
		{"no address", nil, port(conf.TCP, "", 1, 2), nil, conf.ErrNetwork},
		{"::1", []string{webAddr6}, port(conf.TCP, "::1", 1, 2), nil, types.ErrUnsupportedField},
		{"zone", []string{webAddr6}, port(conf.TCP, "fe80::1%eth0", 1, 2), nil, types.ErrUnsupportedField},
		{"multicast", []string{webAddr}, port(conf.TCP, "224.0.0.1", 1, 2), nil, types.ErrInvalidNetworkConfig},
		{"port 0", []string{webAddr}, port(conf.TCP, "", 0, 2), nil, types.ErrInvalidNetworkConfig},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fs, err := publish("c", tt.ips, tt.mapping).forwards()
			if tt.code != 0 {
				requireCode(t, tt.code, err)
				return
			}
			require.NoError(t, err)
			var got []string
			for _, f := range fs {
				got = append(got, f.String())
			}
			require.Equal(t, tt.want, got)
		})
	}
}

// TestTag keeps marks stable: they are in kernels that an upgrade finds running.
func TestTag(t *testing.T) {
	require.Equal(t, "cgxpw3s4iea4j73", tag(publishWeb().Owner))
	k, ok := parseOwner("lab/web/eth0")
	require.True(t, ok)
	require.Equal(t, publishWeb().Owner, k)
}

// TestLongOwner shows that a name that the kernel cannot hold is refused.
func TestLongOwner(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := &lab{host: newSpace(t), backend: backend}
		p := publishWeb(port(conf.TCP, "", 80, 80))
		p.Owner.Network = strings.Repeat("n", longestOwner-len("/web/eth0"))
		l.add(t, p)
		require.NoError(t, l.check(t, p))
		require.NoError(t, l.inHost(t, func(b Backend) error {
			got, err := b.Owners(t.Context(), p.Owner.Network)
			require.Equal(t, []conf.Key{p.Owner}, got)
			return err
		}))
		l.del(t, p)
		p.Owner.Network += "n"
		requireCode(t, conf.ErrNetwork, l.tryAdd(t, p), "longer than 250 bytes")
	})
}
