package plugin

import (
	"context"
	"slices"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// A container in several networks has the same port mappings in each, and its
// first attachment publishes them, or a later one that has the container's default
// route (see claim). When that has gone the others do. It takes
// their locks, so nobody may hold one when this is called, and its own least of
// all: two that wait for each other would wait for long.

// handOver has the other attachments of the container publish what the one that
// is gone did. That attachment's own undo is complete, so a failure is told and is
// not an error.
func (v *verbs) handOver(ctx context.Context, store *record.Store, gone *record.Record) {
	ctx = context.WithoutCancel(ctx)
	for _, key := range v.heirs(store, gone) {
		lockCtx, cancel := lockContext(ctx)
		unlock, err := store.Lock(lockCtx, key)
		cancel()
		if err != nil {
			v.log.Warn("ports of another attachment of the container; \"ambi restore\" publishes them", "attachment", key, "error", err)
			continue
		}
		v.inherit(ctx, store, key)
		unlock()
	}
}

// heirs are the attachments that may have left ports to the one that is gone, the one
// with the container's default route first.
func (v *verbs) heirs(store *record.Store, gone *record.Record) []conf.Key {
	if gone == nil || gone.Published == nil {
		return nil
	}
	keys, err := store.Siblings(gone.Key)
	if err != nil {
		v.log.Warn("looking for other attachments of the container", "attachment", gone.Key, "error", err)
	}
	if len(keys) > 1 {
		out := gone.Netns.WayOut()
		if at := slices.IndexFunc(keys, func(k conf.Key) bool { return k.IfName == out }); at > 0 {
			keys[0], keys[at] = keys[at], keys[0]
		}
	}
	return keys
}

// inherit publishes what is missing of an attachment's ports. Its lock is held.
func (v *verbs) inherit(ctx context.Context, store *record.Store, key conf.Key) {
	r, err := store.Load(key)
	if err != nil || r.State != record.Ready || r.Published == nil {
		return // it went meanwhile, or has no ports
	}
	backend, err := nat.Open(r.Published.Backend)
	if err == nil {
		_, err = backend.Restore(ctx, []nat.Published{published(r)})
	}
	if err != nil {
		v.log.Warn("ports of another attachment of the container; \"ambi restore\" publishes them", "attachment", key, "error", err)
	}
}
