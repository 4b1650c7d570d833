package plugin

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// An engine that was killed, or that calls DEL late ("stop old; run -p same"), leaves
// the ports to a container that is gone. Its attachment is a rival of the one that
// wants them now, and is taken down as GC would, in either mode.

// rivalPatience bounds the wait for the verb at work on a rival, most often its DEL.
// Our own attachment's lock is held meanwhile, so two ADDs may wait for each other,
// each for the leftover of an earlier container of the other's name: this ends it.
const rivalPatience = 5 * time.Second

// addInTurn is Add of the network, once more when a port was in use and nothing was
// done yet: its owner may have been dead, or just leaving.
func (v *verbs) addInTurn(ctx context.Context, n network, r *record.Record) (*types100.Result, error) {
	if err := v.firewallFree(ctx, r); err != nil {
		return nil, err
	}
	result, err := n.Add(ctx, v.attachment)
	if !conf.HasCode(err, conf.ErrPortInUse) || r.Saved() {
		return result, err
	}
	alive := v.evict(ctx)
	if result, err = n.Add(ctx, v.attachment); conf.HasCode(err, conf.ErrPortInUse) && len(alive) > 0 {
		err = naming(alive[0].Key, err)
	}
	return result, err
}

// firewallFree is an error when an attachment of root mode has one of the ports that
// are to be published without root, by the same user: binding them would succeed,
// and nobody would ever come.
func (v *verbs) firewallFree(ctx context.Context, r *record.Record) error {
	if r.Mode != conf.ModeRootless || len(v.attachment.Ports) == 0 || !canUndoRoot() {
		return nil
	}
	for _, rival := range v.evict(ctx) {
		if rival.Mode == conf.ModeRoot && rival.Published != nil {
			m, _ := conf.FirstClash(v.attachment.Ports, rival.Ports)
			return naming(rival.Key, conf.Errorf(conf.ErrPortInUse, "host port %d/%s is in use", m.HostPort, m.Protocol))
		}
	}
	return nil
}

// naming adds to the error of a port in use who has it.
func naming(owner conf.Key, err error) error {
	var e *types.Error
	if !errors.As(err, &e) || strings.Contains(e.Msg, owner.ContainerID) {
		return err
	}
	return conf.Mendf(conf.Errorf(e.Code, "%s; container %s of network %s (interface %s) publishes it", e.Msg, owner.ContainerID, owner.Network, owner.IfName),
		"remove that container, or run \"ambi gc\" if it is gone")
}

// evict takes down the dead attachments that have one of our ports, and returns those
// of other containers that have one and stay. Failures are told: whatever asks for
// the port next fails.
func (v *verbs) evict(ctx context.Context) (alive []*record.Record) {
	for _, dir := range v.stateDirs {
		store, err := record.OpenExisting(dir)
		if err != nil {
			continue
		}
		records, _, err := store.List()
		if err != nil {
			v.log.Warn("looking for the owner of a port", "error", err)
		}
		for _, r := range records {
			if _, clash := conf.FirstClash(v.attachment.Ports, r.Ports); !clash || r.Key == v.attachment.Key {
				continue
			}
			gone, err := v.evictOne(ctx, store, r)
			if err != nil {
				v.log.Warn("taking down a dead attachment that has a port", "attachment", r.Key, "error", err)
			}
			if !gone && r.ContainerID != v.attachment.ContainerID {
				alive = append(alive, r)
			}
		}
	}
	return alive
}

func (v *verbs) evictOne(ctx context.Context, store *record.Store, r *record.Record) (gone bool, err error) {
	if !dead(r) || r.Mode == conf.ModeRoot && !canUndoRoot() {
		return false, nil
	}
	lockCtx, cancel := context.WithTimeout(ctx, rivalPatience)
	defer cancel()
	unlock, err := store.Lock(lockCtx, r.Key)
	if err != nil {
		return false, err
	}
	defer unlock()
	now, err := store.Load(r.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil // its DEL was faster
	case err != nil || !dead(now): // another ADD of the same name was
		return false, err
	}
	err = v.collectOne(ctx, store, r.Key, now)
	return err == nil, err
}

// dead says that the namespace of an attachment is no more. GC may take the path's
// word for it, as a person or an engine asked for it; here somebody else did.
func dead(r *record.Record) bool {
	return r.Netns.Gone() && !r.Netns.Inhabited()
}

// canUndoRoot says whether this process may take down what root mode has made.
func canUndoRoot() bool {
	mode, err := chooseMode(conf.ModeAuto, ownRights())
	return err == nil && mode == conf.ModeRoot
}
