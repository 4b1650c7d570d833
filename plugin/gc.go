package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/root"
	"github.com/ambi-cni/ambi/rootless"
)

// gc is GC: it takes down every attachment of this network that is not in the
// list of valid ones, namespace gone or not, and goes on past errors.
//
// Without a list (cnitool sends none) only what cannot be alive is taken: an ADD
// that was killed, a namespace that is gone, a network that is broken. An empty
// list means that nothing is valid.
func (v *verbs) gc(ctx context.Context) error {
	var errs []error
	for _, dir := range v.stateDirs {
		store, err := record.OpenExisting(dir)
		if err != nil {
			if !record.Elsewhere(err) {
				errs = append(errs, err)
			}
			continue
		}
		errs = append(errs, v.collect(ctx, store))
	}
	if mode, err := chooseMode(v.netConf.Mode, ownRights()); err == nil && mode == conf.ModeRoot {
		errs = append(errs, v.collectUnrecorded(ctx))
	}
	return errors.Join(errs...)
}

// collectUnrecorded removes what this network has as root and no record explains.
func (v *verbs) collectUnrecorded(ctx context.Context) error {
	store, err := record.OpenFirst(v.stateDirs)
	if err != nil {
		return err
	}
	unlock, err := store.LockAll(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return v.root(store, nil).GC(ctx, v.attachment, v.unexplained, func(ctx context.Context, key conf.Key) error {
		return annotated(key, v.collectOne(ctx, store, key, nil))
	})
}

// unexplained says whether what the host has of an attachment may go: no record tells of
// it, and no list of valid attachments, which may know of a container whose record was
// lost.
func (v *verbs) unexplained(key conf.Key) bool {
	store, r, err := v.findRecord(key)
	if err != nil || r != nil {
		return false
	}
	if v.netConf.ValidAttachments == nil {
		return store == nil // an unreadable record is kept, and its ports with it
	}
	return v.stale(store, key, nil)
}

// collect empties one folder of what is stale. GC is alone in it: no ADD or DEL
// runs at the same time, so a record that is not finished never will be.
func (v *verbs) collect(ctx context.Context, store *record.Store) error {
	unlock, err := store.LockAll(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	records, damaged, err := store.List()
	if err != nil {
		return fmt.Errorf("listing records: %w", err)
	}
	var errs []error
	var gone []*record.Record
	for _, r := range records {
		if r.Network == v.netConf.Name && v.stale(store, r.Key, r) {
			errs = append(errs, annotated(r.Key, v.collectOne(ctx, store, r.Key, r)))
			gone = append(gone, r)
		}
	}
	for _, r := range gone {
		v.root(store, r).HandOverLocked(ctx)
	}
	for _, key := range damaged {
		if key.Network == v.netConf.Name && v.stale(store, key, nil) {
			errs = append(errs, annotated(key, v.collectOne(ctx, store, key, nil)))
		}
	}
	errs = append(errs, root.SettleNames(ctx, v.log.Logger, store, v.netConf.Name))
	return errors.Join(append(errs, rootless.EndHubs(ctx, store, v.netConf.Name), store.Sweep(v.netConf.Name))...)
}

func annotated(key conf.Key, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("collecting attachment %s: %w", key, err)
}

func (v *verbs) stale(store *record.Store, key conf.Key, r *record.Record) bool {
	if v.netConf.ValidAttachments != nil {
		return !slices.Contains(v.netConf.ValidAttachments, types.GCAttachment{ContainerID: key.ContainerID, IfName: key.IfName})
	}
	return r != nil && (r.State != record.Ready || r.Netns.Gone() || v.broken(store, r))
}

// collectOne is DEL of a stale attachment.
func (v *verbs) collectOne(ctx context.Context, store *record.Store, key conf.Key, r *record.Record) error {
	one := *v
	attachment := *v.attachment
	attachment.Key, attachment.NetnsPath = key, ""
	one.attachment = &attachment
	v.log.Warn("collecting a dead attachment", "attachment", key)
	if err := one.detach(ctx, store, r); err != nil {
		return err
	}
	return store.RemoveLock(key)
}
