package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	hubs "github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/keeper"
	"github.com/ambi-cni/ambi/rootless/link"
	"github.com/ambi-cni/ambi/rootless/netns"
)

// hub is what the process lives for, a network: the namespace with its bridge, or the way between its
// only member and the driver, and the published ports of its members. Who they are the records
// say.
type hub struct {
	config    Hub
	log       *slog.Logger
	inside    *netns.Namespace
	forwarder *forward.Forwarder
	byDriver  *byDriver      // nil: the forwarder publishes
	watch     watch          // of the only member
	ruling    sync.WaitGroup // until the rules are made that it begins with
	raw       int            // a socket to announce it, see link.Place; made while we have the right to

	mu        sync.Mutex
	published map[conf.Key][]Socket
	targets   map[conf.Key]forward.Target // of those who have, or had, ports

	members members
	names   nameServer
	verbs   atomic.Int32 // that run
	kept    atomic.Int32 // see keepOpen
	ending  context.Context
	end     context.CancelFunc
	refused refusals
	bounded bool   // see bound; by ruling, then by the work of the supervisor
	counts  bool   // the driver does
	toBound uint64 // what stays in the bounding sets of threads that have more yet, bits; by work
	twin    *twin
	before  []*draining // supervisors before

	required bool // to be confined by all means (the key hardening)
}

func (h *hub) String() string { return h.config.String() }

// prepare makes the namespace.
func (h *hub) prepare(command *driver.Command) error {
	h.counts = command.Counts()
	var err error
	if h.inside, err = netns.Make(conf.Key{Network: h.config.Network}, h.config.Bridge, &h.config.Plan); err != nil {
		return err
	}
	h.rule()
	if only := h.config.Only; only != nil {
		if h.watch, err = newWatch(only.Netns); err != nil {
			return err
		}
		if err := h.between(func(p *link.Place) error { return p.AdmitOnly(h.config.Bridge, only.Plan.Own()) }); err != nil {
			return err
		}
	}
	return h.equip(command)
}

// equip makes what this process has of its own in the namespace.
func (h *hub) equip(command *driver.Command) (err error) {
	if only := h.config.Only; only != nil {
		if only.Plan.IPv6.Enabled() {
			if h.raw, err = h.inside.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
				return fmt.Errorf("opening a raw socket in the hub: %w", err)
			}
		}
		if p := command.Publisher(only.Plan.IPv4.First()); p != nil {
			h.byDriver = &byDriver{kind: driver.Of(command.Driver), driver: p, changed: h.entrustByDriver}
		}
	}
	h.forwarder, err = forward.New(forward.Config{Namespace: h.inside, Logger: h.log})
	return err
}

// rule makes the rules that the hub begins with, while the rest of it is made.
func (h *hub) rule() {
	if h.config.Only == nil {
		h.ruling.Go(func() { h.bounded = h.inside.WayOut(!h.counts) == nil }) // bound tries again
	} else if six := h.config.Only.Plan.IPv6; six.Enabled() {
		h.ruling.Go(func() { h.routeErrors(six.Gateway) })
	}
}

// bound gives each member of a shared network its share of the way out, before there is one.
func (h *hub) bound() (err error) {
	h.ruling.Wait()
	if h.config.Only == nil && !h.bounded {
		err = h.inside.WayOut(!h.counts)
		h.bounded = err == nil
	}
	return err
}

// configure gives the driver's interface its addresses, and the only member the way to it.
func (h *hub) configure() error {
	if err := h.bound(); err != nil {
		return err
	}
	h.inside.BePatient()
	if err := h.inside.Configure(); err != nil || h.config.Only == nil {
		return err
	}
	p := &h.config.Only.Plan
	name := h.config.Plan.IfName
	return h.between(func(at *link.Place) error {
		if err := at.Between(name, p.Others(), p.Own()); err != nil {
			return err
		}
		return at.Announce(h.raw, name, p.Own())
	})
}

func (h *hub) routeErrors(from netip.Addr) {
	if err := h.inside.RouteErrors(from); err != nil {
		h.log.Warn("a container may have to wait for what has no IPv6", "error", err)
	}
}

// between does something about the way between the only member and the driver.
func (h *hub) between(do func(*link.Place) error) error {
	place, err := h.place()
	if err == nil {
		defer place.Close()
		err = do(place)
	}
	if err != nil {
		return fmt.Errorf("the way between container and driver: %w", err)
	}
	return nil
}

func (h *hub) restored() error {
	if h.byDriver == nil {
		return nil
	}
	return h.byDriver.restored()
}

func (h *hub) serve(r request, files []*os.File) (reply, error) {
	switch r.Op {
	case opOpen:
		closeAll(files)
		out, err := h.open()
		return reply{files: out}, err
	case opLeave:
		closeAll(files)
		return reply{}, h.leaves(r)
	case opUnlink:
		closeAll(files)
		return reply{}, h.removeLinks(r.Link, r.Links)
	case opNames:
		closeAll(files)
		return reply{}, h.serveNames(r)
	case opStandIn:
		closeAll(files)
		out, err := h.openStandIn(r)
		return reply{files: out}, err
	case opVerb:
		closeAll(files)
		ran, err := h.run(r)
		return reply{Ran: ran}, err
	case opRemovePort:
		closeAll(files)
		return reply{}, h.withdraw(r)
	}
	return reply{}, h.publishFor(r, files)
}

// open opens what a verb needs of the namespace: it has the right to use it, being of the
// user who made the hub, and not the one to come in.
func (h *hub) open() ([]*os.File, error) {
	if h.config.Only != nil {
		place, err := h.place()
		if err != nil {
			return nil, err
		}
		return place.Files(), nil
	}
	filter, err := h.inside.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, netns.NoFirewall(fmt.Errorf("opening a netlink socket in the hub: %w", err))
	}
	h.keepOpen(filter)
	files := []*os.File{os.NewFile(uintptr(filter), "netlink socket")}
	place, err := h.place()
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return append(files, place.Files()...), nil
}

// mostKept is how many sockets are kept open: descriptors may be few.
const mostKept = 8

// keepOpen has a socket for nftables stay open for longer than a verb needs it: who closes it
// as the last one waits until the kernel has forgotten what was taken away by it, and for whoever
// has a transaction under way (nft_rcv_nl_event in net/netfilter/nf_tables_api.c).
func (h *hub) keepOpen(socket int) {
	const longerThanVerbs = 2 * time.Second
	if h.kept.Add(1) > mostKept {
		h.kept.Add(-1)
		return
	}
	own, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	time.AfterFunc(longerThanVerbs, func() {
		if err == nil {
			unix.Close(own)
		}
		h.kept.Add(-1)
	})
}

// place is the namespace from outside.
func (h *hub) place() (place *link.Place, err error) {
	h.inside.Do(func() { place, err = link.Here() })
	if err != nil {
		return nil, fmt.Errorf("the network namespace of the hub: %w", err)
	}
	return place, nil
}

func (h *hub) publishFor(r request, files []*os.File) error {
	if h.byDriver != nil && r.Port != nil {
		closeAll(files)
		return h.byDriver.add(*r.Port)
	}
	if r.Member == nil || r.Target == nil || len(r.Sockets) != len(files) {
		closeAll(files)
		return conf.Errorf(types.ErrDecodingFailure, "control request %s: no member, no target, or not one description for each socket", r.Op)
	}
	sockets := make([]forward.Socket, len(files))
	for i, f := range files {
		sockets[i] = forward.Socket{Mapping: r.Sockets[i].Mapping, Family: r.Sockets[i].Family, File: f}
	}
	if err := h.publish(heldPort{Member: *r.Member, Target: *r.Target}, sockets); err != nil {
		return err
	}
	if r.caller.Err() == nil {
		return nil
	}
	// It has been killed while this waited, and the member may be deleted by now, with the ports that it had.
	errs := []error{errors.New("who asked for ports has ended meanwhile")}
	for m := range mappingsOf(r.Sockets) {
		errs = append(errs, h.withdraw(request{Member: r.Member, Port: &m}))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.published[*r.Member]) == 0 { // or a DEL that comes again would take the rules of who has the address by then
		delete(h.published, *r.Member)
		delete(h.targets, *r.Member)
	}
	return errors.Join(errs...)
}

func (h *hub) withdraw(r request) error {
	if r.Port != nil && h.byDriver != nil {
		return h.byDriver.remove(*r.Port)
	}
	if r.Member == nil || r.Port == nil {
		return conf.Errorf(types.ErrDecodingFailure, "control request %s: no member or no port", r.Op)
	}
	if err := h.unpublish(*r.Port); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.published[*r.Member] = slices.DeleteFunc(h.published[*r.Member], func(s Socket) bool { return s.Mapping == *r.Port })
	return nil
}

// leaves takes back the ports of a member. What the kernel does not let go is tried again
// the next time: the member's address will be another's.
func (h *hub) leaves(r request) error {
	if r.Member == nil {
		return conf.Errorf(types.ErrDecodingFailure, "control request %s: no member", r.Op)
	}
	h.mu.Lock()
	sockets := h.published[*r.Member]
	target := h.targets[*r.Member]
	delete(h.published, *r.Member)
	h.mu.Unlock()
	var errs []error
	for m := range mappingsOf(sockets) {
		errs = append(errs, h.unpublish(m))
	}
	if err := errors.Join(append(errs, h.inside.RemoveSender(target))...); err != nil {
		return err
	}
	go h.forgetFlows(r.Addresses)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.targets, *r.Member)
	return nil
}

// removeLinks removes interfaces, one of a name, if that is given, and those with the indexes. It
// returns when they are gone; what the kernel does after that it does while this process goes on.
func (h *hub) removeLinks(name string, indexes []int) error {
	place, err := h.place()
	if err != nil {
		return err
	}
	defer place.Close()
	if name != "" {
		l, err := place.Link(name)
		if err != nil {
			return fmt.Errorf("the network namespace of the hub: %w", err)
		}
		if l != nil {
			indexes = append(indexes, l.Index)
		}
	}
	for _, index := range indexes {
		worker, err := h.place()
		if err == nil {
			err = place.Take(index, worker)
		}
		if err != nil {
			return fmt.Errorf("the network namespace of the hub: %w", err)
		}
	}
	return nil
}

// mappingsOf are the mappings of sockets, each once.
func mappingsOf(sockets []Socket) map[conf.PortMapping]bool {
	mappings := make(map[conf.PortMapping]bool, len(sockets))
	for _, s := range sockets {
		mappings[s.Mapping] = true
	}
	return mappings
}

// check is about one member.
func (h *hub) check(r request) []error {
	if r.Member == nil {
		return nil
	}
	errs := []error{h.inside.CheckLink(), checkBound(h.socketsOf(*r.Member)), h.inside.CheckRules()}
	if h.byDriver != nil {
		errs = append(errs, h.byDriver.check())
	}
	return errs
}

func (h *hub) socketsOf(member conf.Key) []Socket {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.published[member])
}

// status has the ports of one member, or of all.
func (h *hub) status(r request, process driver.Process, s *Status) {
	s.MAC, s.Ports = h.config.Plan.MAC, h.forwarder.Stats()
	if only := h.config.Only; only != nil {
		s.MAC = only.Plan.MAC
	}
	if r.Member == nil {
		return
	}
	if link, err := h.inside.LinkByName(r.Link); err == nil {
		s.Interface = StatsOf(link).reversed()
	}
	refused := h.flowsRefused(r.Addresses)
	s.WayOut = h.wayOut(process, r.Addresses, refused)
	if h.byDriver != nil {
		s.Ports = h.byDriver.stats()
		return
	}
	if refused != nil {
		s.FlowsRefused = *refused
	}
	own := mappingsOf(h.socketsOf(*r.Member))
	s.Ports = slices.DeleteFunc(s.Ports, func(p PortStats) bool { return !own[p.Mapping] })
}

// forgetFlows is best effort: who gets the addresses next may begin with a smaller share.
func (h *hub) forgetFlows(of []netip.Addr) {
	if h.config.Only != nil || len(of) == 0 {
		return
	}
	if err := h.inside.ForgetFlows(of); err != nil {
		h.log.Warn("the share of a member", "error", err)
	}
}

// flowsRefused is how many flows of a member were, all its addresses together; nil where nobody
// counts, as in a private network.
func (h *hub) flowsRefused(addresses []netip.Addr) *uint64 {
	if h.config.Only != nil {
		return nil
	}
	refused, err := h.inside.FlowsRefused()
	if err != nil || refused == nil {
		return nil
	}
	n := new(uint64)
	for _, ip := range addresses {
		*n += refused[ip]
	}
	return n
}

// verbGrace is less than the patience of those who stop us.
const verbGrace = 3 * time.Second

// finish lets the verbs that run in the hub come to their end, since their plugins may keep
// something outside, and ends those that do not.
func (h *hub) finish() {
	const pause = 5 * time.Millisecond
	for deadline := time.Now().Add(verbGrace); h.verbs.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(pause)
	}
	h.end()
	for deadline := time.Now().Add(time.Second); h.verbs.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(pause)
	}
}

// leave takes back the ports. The way to the members goes with this process.
func (h *hub) leave() {
	h.finish()
	h.names.mu.Lock()
	h.names.close()
	h.names.mu.Unlock()
	h.inside.LeaveAtOnce()
	if err := h.forwarder.Close(); err != nil {
		h.log.Warn("closing ports", "error", err)
	}
}

// unlink removes the only member's interface, which DEL has done, if it was DEL: the kernel is in
// no hurry to when the hub goes.
func (h *hub) unlink() {
	if h.config.Only == nil {
		return
	}
	if err := h.between(func(p *link.Place) error { return p.Remove(h.config.Bridge) }); err != nil {
		h.log.Warn("removing the interface", "error", err)
	}
}

// withoutDriver removes the interface of a driver that has ended, which is there for longer.
func (h *hub) withoutDriver() {
	place, err := h.place()
	if err == nil {
		defer place.Close()
		err = place.Remove(h.config.Plan.IfName)
	}
	if err != nil {
		h.log.Warn("removing the interface of the driver", "error", err)
	}
}

// forget removes the folder of a hub that ends by itself, unless DEL or GC is about to.
func (h *hub) forget() {
	if h.members.lost() {
		return
	}
	lock := h.members.lock
	if only := h.config.Only; only != nil {
		unlock := h.forgetRecord(only.Key)
		if unlock == nil {
			return
		}
		defer unlock()
		lock = h.members.lockNow()
	}
	if lock == nil {
		return
	}
	defer lock.Close()
	if err := h.members.hub.Remove(); err != nil {
		h.log.Warn("removing the folder of the hub", "error", err)
	}
}

// forgetRecord removes the record, and keeps the attachment's lock; nil when another has it.
func (h *hub) forgetRecord(key conf.Key) (unlock func()) {
	now, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	unlock, err := h.members.hub.Store.Lock(now, key)
	if err != nil {
		return nil
	}
	if err := h.members.hub.Store.Remove(key); err != nil {
		h.log.Warn("removing the record", "error", err)
	}
	return unlock
}

// members are those of a hub as its records say.
type members struct {
	hub     hubs.Hub
	changed time.Time // of the state folder, when it was read last
	seen    time.Time // when that change was seen, by a clock that nobody sets
	watched map[conf.Key]watched
	alive   os.FileInfo   // the hub's lock of that name
	restive bool          // members came or went at the last look
	work    chan struct{} // has something in it while a GC runs
	lock    *os.File      // of the hub, when it has none any more
}

type watched struct {
	watch
	tried time.Time // when a GC was started for it last
}

// settled is for how long a change of a folder has to be the last one, so that there was no other in the
// same tick of the file system's clock.
const settled = time.Second

// lockNow is the lock of the hub; nil when another has it.
func (m *members) lockNow() *os.File {
	now, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	lock, err := m.hub.Lock(now, flock.Exclusive)
	if err != nil {
		return nil
	}
	return lock
}

// gone takes out the members whose namespaces are gone, and says whether none is left.
func (h *hub) gone() bool {
	if h.config.Only != nil {
		return h.watch.gone()
	}
	m := &h.members
	if m.lost() {
		return m.allGone() && h.unlinked()
	}
	if err := m.read(); err != nil {
		h.log.Warn("reading the members of the hub", "error", err)
		return false
	}
	if len(m.watched) == 0 {
		return h.verbs.Load() == 0 && m.deserted()
	}
	h.sayRefused()
	for key, w := range m.watched {
		if w.gone() && time.Since(w.tried) > collectPause {
			m.watched[key] = watched{w.watch, time.Now()}
			h.collect(key)
		}
	}
	return false
}

// refusals are what was said of members that have as many flows as they may.
type refusals struct {
	looked time.Time
	said   map[netip.Addr]bool
}

// refusalPause is between two looks whether flows were refused.
const refusalPause = 5 * time.Second

// sayRefused says of each member once that flows of it are refused.
func (h *hub) sayRefused() {
	r := &h.refused
	if time.Since(r.looked) < refusalPause {
		return
	}
	r.looked = time.Now()
	refused, err := h.inside.FlowsRefused()
	if err != nil {
		h.log.Warn("looking whether flows were refused", "error", err)
		return
	}
	for ip := range refused {
		if !r.said[ip] {
			h.log.Warn("a member has as many flows as it may, more are refused", "address", ip)
		}
	}
	r.said = map[netip.Addr]bool{}
	for ip := range refused {
		r.said[ip] = true
	}
}

// lost says that somebody has removed the folder of the hub: by what is in its place, if anything
// is, no verb means us.
func (m *members) lost() bool {
	now, err := os.Stat(m.hub.Path("alive"))
	return errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, m.alive)
}

// allGone is for a hub whose folder is lost, in which nobody comes or leaves by a verb any more: the
// namespaces of the members are what it lives for.
func (m *members) allGone() bool {
	for _, w := range m.watched {
		if !w.gone() {
			return false
		}
	}
	return true
}

// unlinked says that no member is left that came after the last look at the records either.
func (h *hub) unlinked() bool {
	linked, err := h.inside.Linked()
	return err == nil && !linked
}

// collectPause is between two tries to take a member out.
const collectPause = 10 * time.Second

// read lists the members again when the state folder has changed.
func (m *members) read() error {
	st, err := os.Stat(m.hub.Store.Dir())
	if err != nil {
		return err
	}
	if st.ModTime().Equal(m.changed) && time.Since(m.seen) > settled {
		if m.restive {
			giveMemoryBack() // what it took to serve them
		}
		m.restive = false
		return nil
	}
	m.restive = true
	records, err := m.hub.Members()
	if err != nil {
		return err
	}
	if changed := st.ModTime(); !changed.Equal(m.changed) {
		m.changed, m.seen = changed, time.Now()
	}
	now := map[conf.Key]watched{}
	for _, r := range records {
		w, ok := m.watched[r.Key]
		if !ok || w.netns != r.Netns {
			w.close()
			w = watched{watch: watchOf(r.Netns)}
		}
		now[r.Key] = w
	}
	for key, w := range m.watched {
		if _, ok := now[key]; !ok {
			w.close()
		}
	}
	m.watched = now
	return nil
}

// deserted says that there is no member, and that none is coming: the lock is ours.
func (m *members) deserted() bool {
	lock := m.lockNow()
	if lock == nil {
		return false // somebody is coming, or sees to it
	}
	if left, err := m.hub.Members(); err != nil || len(left) > 0 {
		lock.Close()
		return false
	}
	m.lock = lock
	return true
}

// collect has GC, of this very program, take out the members that are gone. It looks again
// under the lock that it takes, so that it meets nobody who has come back meanwhile.
func (h *hub) collect(key conf.Key) {
	select {
	case h.members.work <- struct{}{}:
	default:
		return // one is at work, the next look is soon
	}
	h.log.Info("the namespace of a member is gone, taking it out", "member", key)
	go func() {
		defer func() { <-h.members.work }()
		if err := h.runGC(); err != nil {
			h.log.Warn("taking out a member whose namespace is gone", "error", err)
		}
	}()
}

func (h *hub) runGC() error {
	stdin, err := json.Marshal(map[string]string{"cniVersion": "1.1.0", "name": h.config.Network, "type": "ambi", "stateDir": h.config.StateDir})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Dir = append(slices.Clone(keeper.Environment), "CNI_COMMAND=GC", "CNI_PATH=/"), "/"
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(stdin), &said
	onFirstThread(func() { err = cmd.Start() }) // with the last member it ends us
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil && said.Len() > 0 {
		return errors.New(strings.Join(strings.Fields(said.String()), " "))
	}
	return err
}

// checkBound looks for sockets among those of this process.
func checkBound(sockets []Socket) error {
	if len(sockets) == 0 {
		return nil
	}
	bound, err := boundSockets()
	if err != nil {
		return fmt.Errorf("published ports: %w", err)
	}
	var errs []error
	for _, s := range sockets {
		if !bound[s.local()] {
			errs = append(errs, fmt.Errorf("port %s is not bound to %s any more", s.Mapping, s.local().address))
		}
	}
	return errors.Join(errs...)
}

// newHub is the hub of a configuration.
func newHub(c *Hub, log *slog.Logger) (*hub, error) {
	store, err := record.OpenExisting(c.StateDir)
	if err != nil {
		return nil, err
	}
	ending, end := context.WithCancel(context.Background())
	return &hub{
		ending: ending, end: end,
		config: *c, log: log, published: make(map[conf.Key][]Socket), targets: make(map[conf.Key]forward.Target),
		members: members{hub: hubs.Hub{Store: store, Name: c.Name}, work: make(chan struct{}, 1)},
	}, nil
}

// complete has a request be about the only member, if there is one.
func (h *hub) complete(r *request) {
	if only := h.config.Only; only != nil && r.Member == nil {
		r.Member, r.Link = &only.Key, h.config.Bridge
	}
}
