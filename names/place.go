package names

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/scope"
)

// Place is where the name server of a network is, as root. It lives as long as a container
// of the network does: the first ADD starts it, the last DEL ends it, and each verb in
// between starts it again when it has died.
type Place struct {
	Store   *record.Store
	Network string
}

// State is what was started.
type State struct {
	record.Process
	Device    string       `json:"device"` // over which containers ask
	Index     int          `json:"index"`  // of that interface
	Addresses []netip.Addr `json:"addresses"`
	Cgroup    string       `json:"cgroup,omitempty"` // its folder, where the server has one of its own
}

func (s *State) same(other *State) bool {
	return s.Device == other.Device && s.Index == other.Index && slices.Equal(s.Addresses, other.Addresses)
}

const (
	placeSuffix = ".names"
	stateFile   = "server.json"
	pairFile    = "pair.json"
)

// Dir is its folder.
func (p Place) Dir() string {
	const longest = 180 // with the rest below NAME_MAX (255 bytes)
	name := p.Network
	if len(name) > longest {
		sum := sha256.Sum256([]byte(name))
		name = name[:100] + "@@" + hex.EncodeToString(sum[:12])
	}
	return filepath.Join(p.Store.Dir(), name+placeSuffix)
}

func (p Place) path(file string) string { return filepath.Join(p.Dir(), file) }

// LogFile is its log.
func (p Place) LogFile() string { return p.path("log") }

// Running is what was started, with the process that is the server now, or is about to be;
// nil without one that lives.
func (p Place) Running() *State {
	s, err := p.load()
	if err != nil {
		return nil
	}
	process, ok := p.living(s)
	if !ok {
		return nil
	}
	s.Process = process
	return s
}

// living is the server, or else its twin, or else what was started, which may be none. The
// first two are known also when who started it was killed before that was written down.
func (p Place) living(started *State) (record.Process, bool) {
	all := p.pair()
	if started != nil {
		all = append(all, started.Process)
	}
	for _, process := range all {
		if process.Alive() {
			return process, true
		}
	}
	return record.Process{}, false
}

// pair are the server and its twin, as it has written them down itself.
func (p Place) pair() (pair []record.Process) {
	if b, err := os.ReadFile(p.path(pairFile)); err == nil {
		_ = json.Unmarshal(b, &pair) // none, if it is unreadable
	}
	return pair
}

func (p Place) load() (*State, error) {
	b, err := os.ReadFile(p.path(stateFile))
	if err != nil {
		return nil, err
	}
	var s State
	return &s, json.Unmarshal(b, &s)
}

// lock waits as a verb does.
func (p Place) lock(ctx context.Context, how flock.How) (*os.File, error) {
	ctx, cancel := record.LockContext(ctx)
	defer cancel()
	f, err := flock.Folder(ctx, p.Dir(), how)
	if err != nil {
		return nil, p.errorf(err)
	}
	return f, nil
}

// Ensure has a server on these addresses of an interface. The caller's record is there
// already, so that nobody ends it. started says that none ran.
func (p Place) Ensure(ctx context.Context, device string, addresses []netip.Addr) (started bool, err error) {
	wanted := &State{Device: device, Addresses: addresses}
	if wanted.Index, err = indexOf(device); err != nil {
		return false, p.errorf(err)
	}
	// A lock that others share: who ends the server is alone.
	lock, err := p.lock(ctx, flock.Shared)
	if err != nil {
		return false, err
	}
	s := p.Running()
	lock.Close()
	if s != nil && s.same(wanted) {
		return false, nil
	}
	if lock, err = p.lock(ctx, flock.Exclusive); err != nil {
		return false, err
	}
	defer lock.Close()
	if s = p.Running(); s != nil && s.same(wanted) {
		return false, nil
	}
	if err := p.stop(ctx); err != nil {
		return false, err
	}
	return true, p.start(wanted)
}

func indexOf(device string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	}
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", device, err)
	}
	return int(request.Uint32()), nil
}

// stop ends the server, whatever is left of it. Only who is alone may.
func (p Place) stop(ctx context.Context) error {
	for ctx.Err() == nil {
		started, err := p.load()
		if err != nil {
			started = nil
		}
		s, ok := p.living(started)
		if !ok {
			break
		}
		// Both at once, or the one would take the other's place: they are a process group.
		if group, err := unix.Getpgid(s.PID); err == nil && s.Alive() && group != unix.Getpgrp() {
			_ = unix.Kill(-group, unix.SIGKILL)
		}
		if err := s.Stop(ctx); err != nil {
			return p.errorf(err)
		}
	}
	if err := record.AwaitEnd(ctx, p.path("alive")); err != nil {
		return p.errorf(err)
	}
	if s, err := p.load(); err == nil {
		scope.RemoveCgroup(s.Cgroup)
	}
	return nil
}

// Settle has the server as the records say: ended without members, else running, with the
// addresses that they know as their gateways'. revived says that it had to be started again,
// well or not.
func (p Place) Settle(ctx context.Context) (revived bool, err error) {
	if _, err := os.Lstat(p.Dir()); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	members, err := Members(p.Store, p.Network)
	if err != nil {
		return false, err
	}
	if len(members) == 0 {
		return false, p.end(ctx)
	}
	for _, r := range members {
		if servers := ServersOf(r); len(servers) > 0 && r.State == record.Ready {
			started, err := p.Ensure(ctx, r.Bridge, servers)
			return started || err != nil, err
		}
	}
	return false, nil // the first ADD is at it
}

// end ends the server if nobody is there any more, and nobody is coming.
func (p Place) end(ctx context.Context) error {
	lock, err := p.lock(ctx, flock.Exclusive)
	if err != nil {
		return err
	}
	defer lock.Close()
	if members, err := Members(p.Store, p.Network); err != nil || len(members) > 0 {
		return err
	}
	if err := p.stop(ctx); err != nil {
		return err
	}
	return p.errorf(os.RemoveAll(p.Dir()))
}

// errorf is an error about the server itself.
func (p Place) errorf(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the name server of network %q: %w", p.Network, err)
}

// Places are those of a state folder.
func Places(store *record.Store) (places []Place, err error) {
	records, _, err := store.List()
	for _, r := range records {
		if p := (Place{store, r.Network}); NetworkOf(r) == r.Network && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	return places, err
}
