package root

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/bridge"
	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// RestoreNetworks puts back what a reload of the host's firewall took of the built-in
// networks of a state folder, and returns the names of those that are whole again.
// Nobody else may be at work in the folder.
func RestoreNetworks(ctx context.Context, log *slog.Logger, store *record.Store, records []*record.Record) (names []string, err error) {
	members := map[string][]*record.Record{}
	for _, r := range records {
		if r.Mode == conf.ModeRoot && r.Bridge != "" && r.State == record.Ready && !r.Netns.Gone() {
			members[r.Network] = append(members[r.Network], r)
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(members)) {
		err := restoreNetwork(ctx, log, store, members[name])
		if err := errors.Join(err, SettleNames(ctx, log, store, name)); err != nil {
			errs = append(errs, err)
		} else {
			names = append(names, name)
		}
	}
	return names, errors.Join(errs...)
}

// WatchFirewalld calls loaded at once and whenever the host's firewalld has loaded its rules
// anew, until ctx is done or there is an error.
func WatchFirewalld(ctx context.Context, loaded func() error) error {
	return bridge.WatchFirewalld(ctx, bridge.SystemBus, loaded)
}

// restoreNetwork restores one network from the records of its containers, the
// configuration being that of the latest.
func restoreNetwork(ctx context.Context, log *slog.Logger, store *record.Store, members []*record.Record) error {
	latest := slices.MaxFunc(members, func(a, b *record.Record) int { return a.Created.Compare(b.Created) })
	a, err := latest.Attachment()
	if err != nil {
		return err
	}
	n := &Network{Store: store, Record: latest, Log: log}
	m, err := n.choose(a)
	if err != nil {
		return err
	}
	defer m.close()
	var attached []bridge.Attached
	for _, r := range members {
		n.Record = r
		attached = append(attached, bridge.Attached{Key: r.Key, Result: n.lastResult(a)})
	}
	return m.Restore(ctx, attached)
}

// builtIn is the built-in network of one attachment on this host.
type builtIn struct {
	bridge.Network
	container *bridge.Container // nil until enter
}

// openBuiltIn opens the host's side. The container's is for ADD and CHECK only, which
// enter it.
func (n *Network) openBuiltIn(a *conf.Attachment, config conf.Bridge) (*builtIn, error) {
	host, err := bridge.OpenHost()
	if err != nil {
		return nil, err
	}
	return &builtIn{Network: bridge.Network{
		Name: a.Network, Config: config, Host: host, Dir: addressDir(n.Store), Log: n.Log,
	}}, nil
}

// addressDir is where the addresses of a state folder's networks lie, as those of the
// chain of plugins did that once made them: its containers may still live.
func addressDir(s *record.Store) string { return filepath.Join(s.Dir(), "ipam") }

func (b *builtIn) close() {
	if b == nil {
		return
	}
	b.Host.Close()
	if b.container != nil {
		b.container.Close()
		b.container.Namespace.Close()
	}
}

// enter opens the container's side.
func (b *builtIn) enter(path string) error {
	f, _, err := record.OpenNetns(path)
	if err != nil {
		return err
	}
	if b.container, err = bridge.OpenContainer(path, f); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// ready says, before anything is changed, why Add cannot work. An attachment that is
// there already must be told of now: the DEL after a failed Add would take it away.
func (b *builtIn) ready(a *conf.Attachment) error {
	if err := a.Bandwidth.Validate(); err != nil {
		return err
	}
	if err := b.enter(a.NetnsPath); err != nil {
		return err
	}
	return b.Free(b.container, a.Key)
}

// check is CHECK against the result that the caller has from ADD; made is our own.
func (b *builtIn) check(ctx context.Context, a *conf.Attachment, made, result *types100.Result) error {
	if err := b.enter(a.NetnsPath); err != nil {
		return err
	}
	return b.Check(ctx, b.container, a, made, result)
}

// del takes the container off the network. Without a record nothing is looked for, and
// no folder made, where the network has never been: the entry may be one behind another
// plugin.
func (b *builtIn) del(ctx context.Context, r *record.Record, a *conf.Attachment, result *types100.Result) error {
	key := a.Key
	if r != nil {
		return b.Del(ctx, key, result)
	}
	known, err := b.Known()
	if err != nil || !known {
		return err
	}
	if b.enter(a.NetnsPath) == nil { // else it is gone, and its interface with it
		if err := b.DelUnmarked(ctx, b.container, key); err != nil {
			return err
		}
	}
	// What the caller says of the addresses is no proof, and yet tells which files that
	// name nobody were the attachment's.
	return errors.Join(b.Del(ctx, key, result), b.Del(ctx, key, nil))
}

// collect is GC: with a list of valid attachments, all that hold something and are
// unexplained go; then what belongs to nobody.
func (b *builtIn) collect(ctx context.Context, listed bool, unexplained func(conf.Key) bool, collect func(context.Context, conf.Key) error) error {
	known, err := b.Known()
	if err != nil || !known {
		return err
	}
	var errs []error
	if listed {
		holders, err := b.Holders(ctx)
		errs = append(errs, err)
		for _, key := range holders {
			if unexplained(key) {
				errs = append(errs, collect(ctx, key))
			}
		}
	}
	return errors.Join(append(errs, b.Collect(ctx))...)
}
