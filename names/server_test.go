package names

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// far is a time that nothing here takes.
const far = time.Minute

// bench is a server on the loopback with one member there, and other servers that it asks.
type bench struct {
	*Server
	store      *record.Store
	udp, tcp   string
	resolvConf string
}

func newBench(t *testing.T, members string) *bench {
	t.Helper()
	store, err := record.Open(filepath.Join(t.TempDir(), "ambi"))
	require.NoError(t, err)
	b := &bench{store: store, resolvConf: filepath.Join(t.TempDir(), "resolv.conf")}
	b.Server = New(store, "web", b.resolvConf)
	save(t, store, "me", "127.0.0.1", `{"names":true}`, members)
	b.start(t)
	return b
}

// start has the server answer until the test ends.
func (b *bench) start(t *testing.T) {
	t.Helper()
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	f, err := pc.File()
	require.NoError(t, err)
	b.udp = pc.LocalAddr().String()
	pc.Close()
	p, err := own([]*os.File{f})
	require.NoError(t, err)
	go b.servePackets(p)
	go b.ServeStreams(l)
	t.Cleanup(b.Close)
	b.tcp = l.Addr().String()
}

// save writes a record; members are further ones of the configuration.
func save(t *testing.T, store *record.Store, id, address, bridge, members string) conf.Key {
	t.Helper()
	n, err := conf.Parse([]byte(`{"cniVersion":"1.1.0","name":"web","type":"ambi","bridge":` + bridge + members + `}`))
	require.NoError(t, err)
	a, err := conf.NewAttachment(conf.Env{ContainerID: id, IfName: "eth0", Args: "K8S_POD_NAME=Box-" + id}, n)
	require.NoError(t, err)
	r := record.New(a, conf.ModeRoot, record.Netns{})
	r.State, r.Bridge = record.Ready, "ambi-web"
	r.Result = json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"` + address + `/8"}]}`)
	require.NoError(t, store.Save(r))
	return a.Key
}

// servers starts servers on 127.0.0.2 and so on, and names them in resolv.conf; nil is one
// that is not there.
func (b *bench) servers(t *testing.T, all ...func(msg []byte) []byte) {
	t.Helper()
	var text strings.Builder
	for i, serve := range all {
		ip := net.IPv4(127, 0, 0, byte(2+i))
		fmt.Fprintf(&text, "nameserver %s\n", ip)
		if b.forwarder.port == 53 {
			probe, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip})
			require.NoError(t, err)
			b.forwarder.port = probe.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			probe.Close()
		}
		if serve == nil {
			continue
		}
		pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip, Port: int(b.forwarder.port)})
		require.NoError(t, err)
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 2000)
			for {
				n, from, err := pc.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if answer := serve(buf[:n]); answer != nil {
					_, _ = pc.WriteToUDPAddrPort(answer, from)
				}
			}
		}()
	}
	require.NoError(t, os.WriteFile(b.resolvConf, []byte(text.String()), 0o600))
}

// saying is a server that gives an address for every name.
func saying(address string) func([]byte) []byte {
	return func(msg []byte) []byte { return answerWith(msg, address) }
}

func answerWith(msg []byte, addresses ...string) []byte {
	var q query
	if q.parse(msg) != nil {
		return nil
	}
	r := reply{foreign: true}
	for _, a := range addresses {
		r.addresses = append(r.addresses, netip.MustParseAddr(a))
	}
	return r.pack(nil, &q, q.size)
}

func silent([]byte) []byte { return nil }

func refusing(msg []byte) []byte {
	var q query
	_ = q.parse(msg)
	return reply{code: dnsmessage.RCodeRefused, foreign: true}.pack(nil, &q, q.size)
}

// lying answers another question, then with another ID, then not at all.
func lying(msg []byte) []byte {
	var q query
	_ = q.parse(msg)
	copy(q.question[1:], "bad")
	return reply{foreign: true, addresses: []netip.Addr{netip.MustParseAddr("6.6.6.6")}}.pack(nil, &q, q.size)
}

// ask is one question by UDP: what text says of the answer.
func (b *bench) ask(t *testing.T, name string, kind dnsmessage.Type) string {
	t.Helper()
	c, err := net.Dial("udp4", b.udp)
	require.NoError(t, err)
	defer c.Close()
	return exchangeOn(t, c, packed(t, name, kind, 0))
}

func exchangeOn(t *testing.T, c net.Conn, msg []byte) string {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(far)))
	_, err := c.Write(msg)
	require.NoError(t, err)
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	require.NoError(t, err)
	return said(t, buf[:n])
}

// said is the code of an answer, when it is not success, and its data.
func said(t *testing.T, msg []byte) string {
	t.Helper()
	var m dnsmessage.Message
	require.NoError(t, m.Unpack(msg))
	require.Equal(t, uint16(4711), m.ID)
	var words []string
	if m.RCode != dnsmessage.RCodeSuccess {
		words = append(words, strings.TrimPrefix(m.RCode.String(), "RCode"))
	}
	if m.Truncated {
		words = append(words, "truncated")
	}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, netip.AddrFrom4(body.A).String())
		case *dnsmessage.PTRResource:
			words = append(words, body.PTR.String())
		}
		require.Zero(t, a.Header.TTL)
	}
	return strings.Join(words, " ")
}

// TestRecords: a name is there when its record is, with no delay, and gone with it.
func TestRecords(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	require.Equal(t, "127.0.0.1", b.ask(t, "bOX-me.", dnsmessage.TypeA))
	require.Equal(t, "box-me. me.", b.ask(t, "1.0.0.127.in-addr.arpa.", dnsmessage.TypePTR))
	for i := range 200 {
		key := save(t, b.store, "other", fmt.Sprintf("127.1.0.%d", 1+i), `{"names":true}`, "")
		require.Equal(t, fmt.Sprintf("127.1.0.%d", 1+i), b.ask(t, "box-other.", dnsmessage.TypeA))
		require.NoError(t, b.store.Remove(key))
		require.Equal(t, "NameError", b.ask(t, "box-other.", dnsmessage.TypeA))
	}
	save(t, b.store, "mute", "127.2.0.1", `{}`, "")
	require.Equal(t, "NameError", b.ask(t, "box-mute.", dnsmessage.TypeA), "one without names")
}

// TestStrangers: who is no container of the network is told nothing.
func TestStrangers(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	b.servers(t, saying("192.0.2.1"))
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(b.udp)))
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, "Refused", exchangeOn(t, c, packed(t, "box-me.", dnsmessage.TypeA, 0)))
	require.Equal(t, "Refused", exchangeOn(t, c, packed(t, "example.org.", dnsmessage.TypeA, 0)))
}

// TestForwarder: a server without names of its own asks others for all.
func TestForwarder(t *testing.T) {
	t.Parallel()
	b := &bench{resolvConf: filepath.Join(t.TempDir(), "resolv.conf")}
	b.Server = NewForwarder(b.resolvConf)
	b.start(t)
	b.servers(t, saying("192.0.2.1"))
	require.Equal(t, "192.0.2.1", b.ask(t, "me.", dnsmessage.TypeA))
}

func TestForward(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		servers []func([]byte) []byte
		want    string
	}{
		"none":                     {nil, "ServerFailure"},
		"one":                      {[]func([]byte) []byte{saying("192.0.2.1")}, "192.0.2.1"},
		"dead, then one":           {[]func([]byte) []byte{nil, saying("192.0.2.1")}, "192.0.2.1"},
		"dead":                     {[]func([]byte) []byte{nil, nil}, "ServerFailure"},
		"silent, then one":         {[]func([]byte) []byte{silent, saying("192.0.2.1")}, "192.0.2.1"},
		"silent":                   {[]func([]byte) []byte{silent}, "ServerFailure"},
		"refusing, then one":       {[]func([]byte) []byte{refusing, saying("192.0.2.1")}, "192.0.2.1"},
		"refusing":                 {[]func([]byte) []byte{refusing}, "Refused"},
		"refusing, then silent":    {[]func([]byte) []byte{refusing, silent}, "Refused"},
		"lying, then one":          {[]func([]byte) []byte{lying, saying("192.0.2.1")}, "192.0.2.1"},
		"lying":                    {[]func([]byte) []byte{lying}, "ServerFailure"},
		"slow, but in time":        {[]func([]byte) []byte{slow(1500 * time.Millisecond), silent}, "192.0.2.7"},
		"silent at first":          {[]func([]byte) []byte{secondTime()}, "192.0.2.8"},
		"of another answer's size": {[]func([]byte) []byte{long}, "truncated"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, "")
			b.servers(t, x.servers...)
			require.Equal(t, x.want, b.ask(t, "www.example.org.", dnsmessage.TypeA))
		})
	}
}

func slow(by time.Duration) func([]byte) []byte {
	return func(msg []byte) []byte {
		time.Sleep(by)
		return answerWith(msg, "192.0.2.7")
	}
}

func secondTime() func([]byte) []byte {
	var times atomic.Int32
	return func(msg []byte) []byte {
		if times.Add(1) == 1 {
			return nil
		}
		return answerWith(msg, "192.0.2.8")
	}
}

// long answers with more than was asked for.
func long(msg []byte) []byte {
	var q query
	_ = q.parse(msg)
	var all []netip.Addr
	for i := range 100 {
		all = append(all, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	return reply{foreign: true, addresses: all}.pack(nil, &q, 4000)
}

// TestSilentServerIsAskedLater: only the first question waits for a server that does not
// answer, and it is the first again when it does.
func TestSilentServerIsAskedLater(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	var answers atomic.Bool
	b.servers(t, func(msg []byte) []byte {
		if !answers.Load() {
			return nil
		}
		return answerWith(msg, "192.0.2.1")
	}, saying("192.0.2.2"))
	require.Equal(t, "192.0.2.2", b.ask(t, "a.example.org.", dnsmessage.TypeA))
	begun := time.Now()
	for range 20 {
		require.Equal(t, "192.0.2.2", b.ask(t, "b.example.org.", dnsmessage.TypeA))
	}
	if time.Since(begun) > 15*time.Second {
		t.Errorf("20 questions took %s: each waits for the silent one", time.Since(begun))
	}
	answers.Store(true)
	require.Eventually(t, func() bool { return b.ask(t, "c.example.org.", dnsmessage.TypeA) == "192.0.2.1" }, far, 200*time.Millisecond)
}

// TestHostServersAreFollowed: by each way in which the file is changed, and from none.
func TestHostServersAreFollowed(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	b.servers(t, saying("192.0.2.1"), saying("192.0.2.2"))
	ask := func() string { return b.ask(t, "www.example.org.", dnsmessage.TypeA) }
	write := func(path, server string) {
		require.NoError(t, os.WriteFile(path, []byte("nameserver "+server+"\n"), 0o600))
	}
	for range 30 {
		write(b.resolvConf, "127.0.0.2")
		require.Equal(t, "192.0.2.1", ask())
		write(b.resolvConf, "127.0.0.3") // as long, and in the same moment
		require.Equal(t, "192.0.2.2", ask())
	}
	write(b.resolvConf+".new", "127.0.0.2")
	require.NoError(t, os.Rename(b.resolvConf+".new", b.resolvConf))
	require.Equal(t, "192.0.2.1", ask())
	require.NoError(t, os.Remove(b.resolvConf))
	require.Equal(t, "ServerFailure", ask(), "a host that has no network")
	stub := filepath.Join(t.TempDir(), "stub")
	write(stub, "127.0.0.3")
	require.NoError(t, os.Symlink(stub, b.resolvConf))
	require.Equal(t, "192.0.2.2", ask())
	write(stub+".new", "127.0.0.2")
	require.NoError(t, os.Rename(stub+".new", stub))
	require.Equal(t, "192.0.2.1", ask())
}

// TestOwnServers: those of the network's configuration are asked, and not the host's.
func TestOwnServers(t *testing.T) {
	t.Parallel()
	b := newBench(t, `,"dns":{"nameservers":["127.0.0.3"],"domain":"example.test"}`)
	b.servers(t, saying("192.0.2.1"), saying("192.0.2.2"))
	require.Equal(t, "192.0.2.2", b.ask(t, "www.example.org.", dnsmessage.TypeA))
	require.Equal(t, "127.0.0.1", b.ask(t, "box-me.example.test.", dnsmessage.TypeA))
	require.Equal(t, "NameError", b.ask(t, "nobody.example.test.", dnsmessage.TypeA))
}

// TestLongAnswers: what does not fit into a packet says so, and comes by TCP.
func TestLongAnswers(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	for i := range 120 {
		save(t, b.store, fmt.Sprintf("m%d", i), fmt.Sprintf("127.3.0.%d", 1+i), `{"names":true}`, `,"runtimeConfig":{"aliases":{"web":["app"]}}`)
	}
	require.Regexp(t, `^truncated 127\.3\.`, b.ask(t, "app.", dnsmessage.TypeA))
	c, err := net.Dial("udp4", b.udp)
	require.NoError(t, err)
	defer c.Close()
	require.Regexp(t, `^truncated 127\.3\.`, exchangeOn(t, c, packed(t, "app.", dnsmessage.TypeA, 4096)))
	stream, err := net.Dial("tcp4", b.tcp)
	require.NoError(t, err)
	defer stream.Close()
	for range 3 { // on one connection
		require.Len(t, strings.Fields(byTCP(t, stream, "app.")), 120)
	}

	// The same where others are asked.
	all := make([]string, 100)
	for i := range all {
		all[i] = fmt.Sprintf("192.0.2.%d", i)
	}
	b.servers(t, func(msg []byte) []byte { return answerWith(msg, all...) })
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.2:%d", b.forwarder.port))
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			msg, err := readMessage(c, nil, maxStream)
			var q query
			if err == nil && q.parse(msg) == nil {
				r := reply{foreign: true}
				for _, a := range all {
					r.addresses = append(r.addresses, netip.MustParseAddr(a))
				}
				_ = writeMessage(c, r.pack(nil, &q, maxMessage))
			}
			c.Close()
		}
	}()
	require.Regexp(t, `^truncated 192\.0\.2\.0 `, b.ask(t, "www.example.org.", dnsmessage.TypeA))
	require.Len(t, strings.Fields(byTCP(t, stream, "www.example.org.")), 100)
}

func byTCP(t *testing.T, c net.Conn, name string) string {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(far)))
	require.NoError(t, writeMessage(c, packed(t, name, dnsmessage.TypeA, 0)))
	msg, err := readMessage(c, nil, maxMessage)
	require.NoError(t, err)
	return said(t, msg)
}

// TestBounds: a client has so many connections, and no more; one that is slow is let go,
// and others are served meanwhile.
func TestBounds(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	var open []net.Conn
	for range maxStreamsOf {
		c, err := net.Dial("tcp4", b.tcp)
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, "127.0.0.1", byTCP(t, c, "me."))
		open = append(open, c)
	}
	c, err := net.Dial("tcp4", b.tcp)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(far)))
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = open[0].Write([]byte{0, 40, 1}) // and no more
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1", byTCP(t, open[1], "me."))
	require.NoError(t, open[0].SetDeadline(time.Now().Add(far)))
	_, err = open[0].Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp4", b.tcp)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = writeMessage(c, packed(t, "me.", dnsmessage.TypeA, 0))
		_, err = readMessage(c, nil, maxMessage)
		return err == nil
	}, far, 10*time.Millisecond)
}

// TestQuestionsInFlight: a client has so many questions under way, and those over it are
// answered at once.
func TestQuestionsInFlight(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	b.servers(t, silent)
	c, err := net.Dial("udp4", b.udp)
	require.NoError(t, err)
	defer c.Close()
	for i := range maxOfClient + 10 {
		_, err := c.Write(packed(t, fmt.Sprintf("n%d.example.org.", i), dnsmessage.TypeA, 0))
		require.NoError(t, err)
		if i%50 == 0 {
			require.Equal(t, "127.0.0.1", b.ask(t, "me.", dnsmessage.TypeA), "our own names are not held up")
		}
	}
	require.Equal(t, "127.0.0.1", b.ask(t, "me.", dnsmessage.TypeA), "so all before it were taken")
	b.forwarder.mu.Lock()
	waiting := len(b.forwarder.waiting)
	b.forwarder.mu.Unlock()
	require.LessOrEqual(t, waiting, maxOfClient)
	require.NoError(t, c.SetDeadline(time.Now().Add(far)))
	buf := make([]byte, 4096)
	for range 10 {
		n, err := c.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "ServerFailure", said(t, buf[:n]))
	}
}
