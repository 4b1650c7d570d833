package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// A network of two containers, and the name server of its bridge by different programs in
// turns, asked from within the one container: for the other's name, and for names that
// somebody else knows, each another one, so that no cache does.

// nameServer is one program that answers a network's containers.
type nameServer struct {
	name, about string
	programs    []string
	// up has it answer at an address of the host, for the interface there.
	up func(undo *stopper) (address string, err error)
}

func nameServers() []nameServer {
	return []nameServer{
		{"ambi", `"bridge": {"names": true}`, []string{"ambi"}, ambiNames},
		{"dnsmasq", "as the plugin dnsname runs it", []string{"dnsmasq"}, dnsmasqNames},
		{"aardvark-dns", "as netavark runs it", []string{"aardvark-dns"}, aardvarkNames},
	}
}

const (
	plainNetwork = `{"cniVersion":"1.1.0","name":"plain","type":"ambi","bridge":{"subnet":"10.4.0.0/24"}}`
	namedNetwork = `{"cniVersion":"1.1.0","name":"named","type":"ambi","bridge":{"subnet":"10.5.0.0/24","names":true}}`
	plainServer  = "10.4.0.1"
	namedServer  = "10.5.0.1"
	askedName    = "db"
)

func nameRows() []row {
	rate := func(key, title, pattern string) []row {
		return []row{
			{key: key, title: title + ", queries/s", unit: "1/s", figure: "rate", args: []string{"-window", "64", "-name", pattern}},
			{key: key + "-cpu", title: title + ", processor time per 1000 of them", unit: "ms", lower: true, figure: "cpu"},
			{key: key + "-p50", title: title + ", one at a time, p50", unit: "µs", lower: true, figure: "p50", args: []string{"-window", "1", "-name", pattern}},
			{key: key + "-p99", title: title + ", one at a time, p99", unit: "µs", lower: true, figure: "p99", args: []string{"-window", "1", "-name", pattern}},
		}
	}
	return append(rate("own", "a name of the network", askedName), rate("foreign", "forwarded", "%d.example.org")...)
}

func runNames(args []string) error {
	flags := flag.NewFlagSet("run-names", flag.ExitOnError)
	quick := flags.Bool("quick", false, "one short round, to see that everything works")
	rounds := flags.Int("rounds", 5, "rounds; every server has its turn in each")
	length := flags.Duration("time", time.Second, "how long to ask for one figure")
	out := flags.String("out", "docs/bench", "`folder` for names.md and names.svg; empty for none")
	data := flags.String("data", "reports", "`folder` for names.json, every single figure; empty for none")
	_ = flags.Parse(args)
	if *quick {
		*rounds, *length = 1, 300*time.Millisecond
	}
	return inWorld(func() error { return benchNames(*rounds, *length, *out, *data) })
}

func benchNames(rounds int, length time.Duration, out, data string) error {
	undo := stopper{}
	defer undo.stop()
	if err := networkOfTwo(); err != nil {
		return err
	}
	upstream, err := start(exec.Command("ip", "netns", "exec", neighbour, stage+"/bench", "answer", "192.0.2.2:53"))
	if err != nil {
		return err
	}
	undo.add(upstream.kill)
	r := &report{Title: "Names", Machine: thisMachine(), Rounds: rounds, Subject: "ambi", Limit: openFiles(), Window: length.String()}
	servers := nameServers()
	for _, s := range servers {
		r.Columns = append(r.Columns, &column{Name: s.name, About: s.about})
	}
	s := &section{Key: "names", Title: "Names"}
	r.Sections = append(r.Sections, s)
	for round := range rounds {
		for n := range servers {
			server := &servers[(n+round)%len(servers)]
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, rounds, server.name)
			if err := turnOfNames(s, server, length); err != nil {
				fmt.Fprintf(os.Stderr, "  %s: %v\n", server.name, err)
			}
		}
		if err := costOfNames(s); err != nil {
			return err
		}
	}
	pub := r.publication()
	pub.name, pub.title, pub.extract = "names", "The name server of a network", nil
	return pub.publish(out, data)
}

// networkOfTwo makes the two containers.
func networkOfTwo() error {
	conf := stage + "/etc/resolv.conf"
	if err := os.WriteFile(conf, []byte("nameserver 192.0.2.2\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(conf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := steps([][]string{{"ip", "netns", "add", "asker"}, {"ip", "netns", "add", askedName}}); err != nil {
		return err
	}
	for _, c := range []string{"asker", askedName} {
		if err := verbOfNames("ADD", c, "eth0", plainNetwork); err != nil {
			return err
		}
	}
	return nil
}

func verbOfNames(verb, container, ifName, config string) error {
	cmd := exec.Command(stage + "/bin/ambi")
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_PATH=/", "CNI_CONTAINERID=" + container, "CNI_NETNS=/run/netns/" + container, "CNI_IFNAME=" + ifName,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=" + container, "PATH=" + os.Getenv("PATH"),
	}
	cmd.Stdin = strings.NewReader(config)
	if said, err := cmd.Output(); err != nil {
		return fmt.Errorf("%s of %s: %w: %s", verb, container, err, said)
	}
	return nil
}

func turnOfNames(s *section, server *nameServer, length time.Duration) error {
	undo := stopper{}
	defer undo.stop()
	address, err := server.up(&undo)
	if err != nil {
		return err
	}
	ask := func(args []string, length time.Duration) (figures, error) {
		argv := append([]string{"netns", "exec", "asker", stage + "/bench", "ask", "-server", address, "-time", length.String()}, args...)
		said, err := exec.Command("ip", argv...).Output()
		f := figures{}
		if err == nil {
			err = json.Unmarshal(said, &f)
		}
		return f, err
	}
	if err := until(server.name+" answers", nil, func() bool {
		_, err := ask([]string{"-name", askedName}, time.Millisecond)
		return err == nil
	}); err != nil {
		return err
	}
	idle, err := settled(func() (memory, error) { return memoryOf(server.programs...) })
	s.line(row{key: "idle", title: "memory, idle", unit: "MB", lower: true}).cell(server.name).add(idle.Resident, err)
	s.line(row{key: "idle-private", title: "of that its own alone", unit: "MB", lower: true}).cell(server.name).add(idle.Private, err)
	for _, rows := range slices.Collect(slices.Chunk(nameRows(), 4)) {
		before := processorTime(server.programs)
		many, err := ask(rows[0].args, length)
		many["cpu"] = (processorTime(server.programs) - before) * 1e6 / (many["rate"] * length.Seconds())
		for _, row := range rows[:2] {
			s.line(row).cell(server.name).add(many[row.figure], err)
		}
		one, err := ask(rows[2].args, length)
		for _, row := range rows[2:] {
			s.line(row).cell(server.name).add(one[row.figure], err)
		}
	}
	after, err := memoryOf(server.programs...)
	s.line(row{key: "after", title: "memory after it", unit: "MB", lower: true}).cell(server.name).add(after.Resident, err)
	return nil
}

// costOfNames is what names add to the ADD of a network's first container, and of another.
func costOfNames(s *section) error {
	for _, x := range []struct{ key, title string }{{"first", "ADD of the first container with names ÷ without"}, {"next", "ADD of another with names ÷ without"}} {
		var with, without float64
		for range 10 {
			for _, side := range []struct {
				config string
				sum    *float64
			}{{namedNetwork, &with}, {strings.NewReplacer(`,"names":true`, "", "named", "unnamed", "10.5", "10.6").Replace(namedNetwork), &without}} {
				if x.key == "next" {
					if err := verbOfNames("ADD", askedName, "eth1", side.config); err != nil {
						return err
					}
				}
				begin := time.Now()
				if err := verbOfNames("ADD", "asker", "eth1", side.config); err != nil {
					return err
				}
				*side.sum += time.Since(begin).Seconds()
				for _, c := range []string{"asker", askedName} {
					if err := verbOfNames("DEL", c, "eth1", side.config); err != nil {
						return err
					}
				}
			}
		}
		s.line(row{key: "add-" + x.key, title: x.title, unit: "×", lower: true}).cell("ambi").add(with/without, nil)
	}
	return nil
}

func ambiNames(undo *stopper) (string, error) {
	for _, c := range []string{"asker", askedName} {
		if err := verbOfNames("ADD", c, "eth1", namedNetwork); err != nil {
			return "", err
		}
		undo.add(func() { _ = verbOfNames("DEL", c, "eth1", namedNetwork) })
	}
	return namedServer, nil
}

func addressOfAsked() (string, error) {
	said, err := exec.Command("ip", "netns", "exec", askedName, "sh", "-c", "ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'").Output()
	return strings.TrimSpace(string(said)), err
}

func dnsmasqNames(undo *stopper) (string, error) {
	address, err := addressOfAsked()
	if err != nil {
		return "", err
	}
	hosts, conf := stage+"/tmp/addnhosts", stage+"/tmp/dnsmasq.conf"
	text := "domain=dns.podman\nlocal=/dns.podman/\nexpand-hosts\nexcept-interface=lo\nbind-dynamic\nno-hosts\ninterface=ambi-plain\naddn-hosts=" + hosts + "\n"
	if err := errors.Join(os.WriteFile(hosts, []byte(address+" "+askedName+"\n"), 0o644), os.WriteFile(conf, []byte(text), 0o644)); err != nil {
		return "", err
	}
	return plainServer, running(undo, "dnsmasq", "-k", "-u", "root", "--conf-file="+conf)
}

func aardvarkNames(undo *stopper) (string, error) {
	address, err := addressOfAsked()
	if err != nil {
		return "", err
	}
	dir := stage + "/tmp/aardvark"
	text := plainServer + "\n0123456789ab " + address + "  " + askedName + "\n"
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/plain", []byte(text), 0o644)); err != nil {
		return "", err
	}
	return plainServer, running(undo, "/usr/lib/podman/aardvark-dns", "--config", dir, "--port", "53", "run")
}

// running starts a server, and ends also one that puts itself into the background. It is in a
// session of its own, as all of them are where they are used: the kernel shares out the
// processors by sessions (sched(7), autogroup).
func running(undo *stopper, argv ...string) error {
	p, err := start(exec.Command("setsid", argv...))
	if err != nil {
		return err
	}
	undo.add(func() {
		p.kill()
		name := argv[0][strings.LastIndex(argv[0], "/")+1:]
		for i := 0; i < 100 && exec.Command("pkill", "-x", "-9", name).Run() == nil; i++ { // of this world alone
			time.Sleep(10 * time.Millisecond)
		}
	})
	return nil
}

// answer serves DNS as fast as it goes: every name is at one address.
func answer(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench answer ADDRESS")
	}
	address, err := net.ResolveUDPAddr("udp", args[0])
	if err != nil {
		return err
	}
	c, err := net.ListenUDP("udp", address)
	if err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		if reply := answerTo(buf[:n]); reply != nil {
			_, _ = c.WriteToUDPAddrPort(reply, from)
		}
	}
}

func answerTo(msg []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true})
	_ = b.StartQuestions()
	_ = b.Question(q)
	_ = b.StartAnswers()
	_ = b.AResource(dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}, dnsmessage.AResource{A: [4]byte{192, 0, 2, 9}})
	reply, _ := b.Finish()
	return reply
}

// askServer is the load: so many questions under way at a time, for so long.
func askServer(args []string) error {
	flags := flag.NewFlagSet("ask", flag.ExitOnError)
	server := flags.String("server", "", "`address` of the server")
	name := flags.String("name", askedName, "what to ask for; %d is another number each time")
	window := flags.Int("window", 1, "questions under way at a time")
	length := flags.Duration("time", time.Second, "for how long")
	_ = flags.Parse(args)
	var all asked
	var wg sync.WaitGroup
	const sockets = 4
	until := time.Now().Add(*length)
	var first error
	for range min(sockets, *window) {
		wg.Go(func() {
			if err := all.ask(net.JoinHostPort(*server, "53"), *name, max(1, *window/sockets), until); err != nil {
				all.Lock()
				first = err
				all.Unlock()
			}
		})
	}
	wg.Wait()
	if first != nil {
		return first
	}
	slices.Sort(all.took)
	at := func(share float64) float64 {
		return float64(all.took[min(len(all.took)-1, int(share*float64(len(all.took))))].Nanoseconds()) / 1e3
	}
	return json.NewEncoder(os.Stdout).Encode(figures{"rate": float64(len(all.took)) / length.Seconds(), "p50": at(0.5), "p99": at(0.99), "lost": float64(all.lost)})
}

// asked is what became of the questions.
type asked struct {
	sync.Mutex
	took []time.Duration
	lost int
}

func (a *asked) ask(server, name string, window int, until time.Time) error {
	conn, err := net.Dial("udp", server)
	if err != nil {
		return err
	}
	defer conn.Close()
	const patience = 2 * time.Second
	sent := make(map[uint16]time.Time, window)
	var took []time.Duration
	buf := make([]byte, 2048)
	for id := uint16(0); ; {
		for len(sent) < window && time.Now().Before(until) {
			id++
			msg, err := question(name, id)
			if err != nil {
				return err
			}
			sent[id] = time.Now()
			if _, err := conn.Write(msg); err != nil {
				return err
			}
		}
		if len(sent) == 0 {
			break
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		n, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			a.Lock()
			a.lost += len(sent)
			a.Unlock()
			clear(sent)
			continue
		}
		if err != nil {
			return err
		}
		got := binary.BigEndian.Uint16(buf)
		if begun, ok := sent[got]; ok && n > 3 && buf[3]&0xf == 0 {
			took = append(took, time.Since(begun))
			delete(sent, got)
		} else if ok {
			return fmt.Errorf("the answer to a question for %s has code %d", name, buf[3]&0xf)
		}
	}
	a.Lock()
	defer a.Unlock()
	a.took = append(a.took, took...)
	if len(a.took) == 0 {
		return errors.New("no answer")
	}
	return nil
}

func question(name string, id uint16) ([]byte, error) {
	if strings.Contains(name, "%d") {
		name = fmt.Sprintf(name, rand.Uint64()) //nolint:gosec // another one each time
	}
	target, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, err
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: target, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	return b.Finish()
}
