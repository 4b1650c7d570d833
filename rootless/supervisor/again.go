package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/keeper"
	"github.com/ambi-cni/ambi/rootless/netns"
)

// This file is what the keeper holds of a hub, and a supervisor that begins with it.

// The keys of what it holds.
const (
	keyConfig   = "config"    // the value is the Config
	keyAlive    = "alive"     // the file alive
	keyNetns    = "netns"     // the files of netns.Namespace.Files
	keyNames    = "names"     // the value is the addresses, the files those of names.Listen
	keyByDriver = "driver "   // and the mapping, which is the value, too: the driver publishes it
	keyDriver   = "way out"   // the value is a heldDriver, the files those of a driver.Survivor
	keyDraining = "draining " // and the generation of a supervisor that still has connections; the file is its pidfd
	keyPort     = "port "     // and the mapping: the value is a heldPort, the files are its sockets
	keyControl  = keeper.ControlKey
)

// heldPort is a published port.
type heldPort struct {
	Member  conf.Key       `json:"member"`
	Target  forward.Target `json:"target"`
	Sockets []Socket       `json:"sockets"`
}

// heldDriver is a driver that lives on when its supervisor ends.
type heldDriver struct {
	PID    int    `json:"pid"`
	OfHost string `json:"ofHost"`
}

// entrustDriver has the keeper keep the driver alive.
func (s *supervisor) entrustDriver(process driver.Process) {
	survivor := process.Survivor()
	if survivor == nil {
		return
	}
	if value, err := json.Marshal(heldDriver{survivor.PID, s.ofHost}); err == nil { // strings and numbers
		s.twin.keep(keyDriver, held{value, withFiles(survivor.Files...)})
	}
}

// disown has the keeper let go of a driver, which has ended or is about to.
func (s *supervisor) disown() { _ = s.twin.drop(keyDriver, func() error { return nil }) }

// adoptDriver is the driver of the supervisor before, if that lives on; else nil.
func (s *supervisor) adoptDriver(from items) driver.Process {
	m, ok := from[keyDriver]
	if !ok {
		return nil
	}
	var h heldDriver
	files, err := from.files(keyDriver, 1)
	if err == nil {
		err = json.Unmarshal(m.Value, &h)
	}
	if err != nil {
		s.log.Error("taking over from the supervisor before", "what", keyDriver, "error", err)
		return nil
	}
	process, err := s.command.Adopt(driver.Survivor{PID: h.PID, Files: files}, s.files, s.log)
	if err != nil { // it has died, too
		closeAll(files)
		s.letWait()
		return nil
	}
	s.ofHost = h.OfHost
	s.twin.note(keyDriver, held{m.Value, withFiles(process.Survivor().Files...)})
	return process
}

// entrust gives the keeper what is there from the start.
func (s *supervisor) entrust(config *Config) error {
	value, err := json.Marshal(config)
	if err != nil {
		return err
	}
	s.twin.keep(keyConfig, held{value: value})
	s.twin.keep(keyAlive, held{files: withFiles(s.files.Alive)})
	s.twin.keep(keyNetns, held{files: withFiles(s.hub.inside.Files()...)})
	s.twin.keep(keyControl, held{files: func(use func(fds ...int) error) error {
		raw, err := s.control.SyscallConn()
		if err != nil {
			return err
		}
		return errors.Join(raw.Control(func(fd uintptr) { err = use(int(fd)) }), err)
	}})
	return nil
}

// publish forwards ports, whose sockets the keeper holds as well. Those that are forwarded
// already were asked for when the supervisor before us was killed before it could answer.
func (h *hub) publish(p heldPort, sockets []forward.Socket) error {
	have := mappingsOf(h.socketsOf(p.Member))
	var fresh []forward.Socket
	for _, s := range sockets {
		if have[s.Mapping] {
			s.File.Close()
			continue
		}
		fresh = append(fresh, s)
	}
	if len(fresh) == 0 {
		return nil
	}
	items, err := h.handPorts(p, fresh)
	if err != nil {
		forward.CloseSockets(fresh)
		return err
	}
	if err := h.twin.hand(items, func() error { return h.forwarder.AddTo(p.Target, fresh) }); err != nil {
		return err
	}
	h.noteForwarded(p, fresh)
	return nil
}

func (h *hub) noteForwarded(p heldPort, sockets []forward.Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range sockets {
		h.published[p.Member] = append(h.published[p.Member], Socket{s.Mapping, s.Family})
	}
	h.targets[p.Member] = p.Target
}

// handPorts are the items of ports, one for each mapping.
func (h *hub) handPorts(p heldPort, sockets []forward.Socket) (items []handed, err error) {
	at := map[conf.PortMapping]int{}
	ports := []heldPort{}
	for _, s := range sockets {
		i, ok := at[s.Mapping]
		if !ok {
			i = len(items)
			at[s.Mapping] = i
			items = append(items, handed{key: keyPort + s.Mapping.String(), item: h.portItem(s.Mapping)})
			ports = append(ports, heldPort{Member: p.Member, Target: p.Target})
		}
		items[i].files = append(items[i].files, s.File)
		ports[i].Sockets = append(ports[i].Sockets, Socket{s.Mapping, s.Family})
	}
	for i := range items {
		if items[i].item.value, err = json.Marshal(ports[i]); err != nil {
			return nil, err
		}
	}
	return items, nil
}

func (h *hub) portItem(m conf.PortMapping) held {
	return held{files: func(use func(fds ...int) error) error { return h.forwarder.WithSockets(m, use) }}
}

// unpublish is the reverse for one port: when it returns nobody holds its sockets.
func (h *hub) unpublish(m conf.PortMapping) error {
	return h.twin.drop(keyPort+m.String(), func() error {
		if err := h.forwarder.Remove(m); !errors.Is(err, os.ErrNotExist) { // it may have been done, and not answered
			return err
		}
		return nil
	})
}

// entrustNames has the keeper hold the sockets of the name server, which owns them from then on.
func (h *hub) entrustNames(at []netip.Addr, files []*os.File) error {
	value, err := json.Marshal(at)
	if err != nil {
		return err
	}
	copies, err := duplicates(files)
	if err != nil {
		return err
	}
	closeAll(h.names.copies)
	h.names.copies = copies
	h.twin.keep(keyNames, held{value, withFiles(copies...)})
	return nil
}

// entrustByDriver has the keeper know that the driver publishes a port, or does no more. Each is
// an item, as an item with all of them could be longer than a message.
func (h *hub) entrustByDriver(m conf.PortMapping, published bool) {
	key := keyByDriver + m.String()
	if !published {
		_ = h.twin.drop(key, func() error { return nil })
	} else if value, err := json.Marshal(m); err == nil { // it came as JSON
		h.twin.keep(key, held{value: value})
	}
}

func duplicates(files []*os.File) (copies []*os.File, err error) {
	for _, f := range files {
		err := withFDs([]*os.File{f}, nil, func(fds ...int) error {
			fd, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				copies = append(copies, os.NewFile(uintptr(fd), f.Name()))
			}
			return err
		})
		if err != nil {
			closeAll(copies)
			return nil, fmt.Errorf("sockets of the name server: %w", err)
		}
	}
	return copies, nil
}

// items are what a keeper has handed over.
type items map[string]keeper.Message

func (i items) files(key string, atLeast int) (files []*os.File, err error) {
	for _, fd := range i[key].Files {
		files = append(files, os.NewFile(uintptr(fd), key))
	}
	if len(files) < atLeast {
		return nil, fmt.Errorf("the keeper has no item %q", key)
	}
	return files, nil
}

// again is the main function of a supervisor that was started by a keeper, after another one
// has ended.
func again() int {
	log := newLogger(newLogFile(os.Stderr), "")
	s, err := resume(log)
	if errors.Is(err, fs.ErrNotExist) {
		log.Error("leaving, as the folder of the hub is gone", "error", err)
		return keeper.Nobody
	}
	if err != nil {
		log.Error("starting again", "error", err)
		return 1
	}
	s.log.Info("the supervisor is back", "keeper", s.twin.process())
	go serveControl(s.control, s.owner, s.log, s.answer)
	s.live()
	return 0
}

func resume(log *slog.Logger) (*supervisor, error) {
	title := ""
	if len(os.Args) > 2 {
		title = os.Args[2]
	}
	t, held, err := takeOver(configFD, title)
	if err != nil {
		return nil, err
	}
	config, err := decodeConfig(strings.NewReader(string(held[keyConfig].Value)))
	if err != nil {
		return nil, err
	}
	t.log = newLogger(newLogFile(os.Stderr), config.LogLevel).With(config.Hub.about()...)
	h, err := newHubWithRights(config, t.log)
	if err == nil {
		_, err = os.Stat(h.members.hub.Dir())
	}
	if err != nil {
		return nil, err
	}
	netnsFiles, err := items(held).files(keyNetns, 1)
	if err != nil {
		return nil, err
	}
	if err := h.resume(&config.Driver, netnsFiles, drainingOf(held)); err != nil {
		return nil, err
	}
	if !confine.HasFilter() { // it has one from the supervisor before, unless that was of an older version
		if err := h.confine(&config.Driver); err != nil {
			return nil, err
		}
	}
	alive, err := items(held).files(keyAlive, 1)
	if err != nil {
		return nil, err
	}
	control, err := items(held).files(keyControl, 1)
	if err != nil {
		return nil, err
	}
	s, err := newSupervisor(h, config, t, alive[0], control[0])
	if err != nil {
		return nil, err
	}
	// Before it answers: a request that was not answered is asked again.
	h.restore(held)
	for _, d := range h.before {
		s.attend(d)
	}
	s.adopted = s.adoptDriver(held)
	s.setDriver(s.adopted, nil)
	t.begin()
	return s, nil
}

// resume takes over the namespace, which is as it was.
func (h *hub) resume(command *driver.Command, files []*os.File, before []*draining) (err error) {
	h.before = before
	generation, others := generationAfter(before)
	h.counts = command.Counts()
	if h.inside, err = netns.Again(conf.Key{Network: h.config.Network}, generation, others, h.config.Bridge, &h.config.Plan, files); err != nil {
		return err
	}
	if only := h.config.Only; only != nil {
		h.watch = watchOf(only.Netns)
	}
	return h.equip(command)
}

// restore puts ports and names back. What cannot be is logged, and CHECK names it.
func (h *hub) restore(from items) {
	for key, m := range from {
		var err error
		switch {
		case key == keyNames:
			err = h.restoreNames(m.Value, from)
		case strings.HasPrefix(key, keyByDriver) && h.byDriver != nil:
			h.twin.note(key, held{value: m.Value})
			err = h.byDriver.know(m.Value)
		case strings.HasPrefix(key, keyPort):
			err = h.restorePort(key, m.Value, from)
		}
		if err != nil {
			h.log.Error("taking over from the supervisor before", "what", key, "error", err)
		}
	}
}

func (h *hub) restorePort(key string, value []byte, from items) error {
	var p heldPort
	if err := json.Unmarshal(value, &p); err != nil {
		return err
	}
	sockets := make([]forward.Socket, len(p.Sockets))
	for i, s := range p.Sockets {
		sockets[i] = forward.Socket{Mapping: s.Mapping, Family: s.Family}
		h.twin.note(key, held{value, h.portItem(s.Mapping).files})
	}
	// What is not forwarded is the member's port all the same, and bound if the keeper has it.
	h.noteForwarded(p, sockets)
	files, err := from.files(key, len(p.Sockets))
	if err != nil {
		return err
	}
	for i := range sockets {
		sockets[i].File = files[i]
	}
	return h.forwarder.AddTo(p.Target, sockets)
}

func (h *hub) restoreNames(value []byte, from items) error {
	var at []netip.Addr
	if err := json.Unmarshal(value, &at); err != nil {
		return err
	}
	files, err := from.files(keyNames, 1)
	if err != nil {
		return err
	}
	h.names.mu.Lock()
	defer h.names.mu.Unlock()
	return h.serveNamesOn(at, files)
}

// awaitNoDriver waits until the driver before has let go of its interface, which ends when its
// supervisor does: until then another driver cannot have it.
func (h *hub) awaitNoDriver() {
	const patience, pause = 2 * time.Second, 2 * time.Millisecond
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(pause) {
		if h.inside.CheckLink() != nil {
			return
		}
	}
}
