package root

import (
	"context"
	"slices"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// A container in several networks has the same port mappings in each. One attachment
// publishes them: the first, or a later one that the container's default route leads
// over (Claim). When that one is taken down, another has to publish them, which takes
// that other one's lock. Two verbs that each hold the lock of their own attachment and
// want the other's would wait for each other until both give up; so a verb lets go of
// its own before.

// HandOver has the other attachments of the container publish what this one, which is
// gone, did. Nobody may hold a lock of the container when it is called. What this one
// had to do is done, so a failure is told and is not an error.
func (n *Network) HandOver(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, key := range n.heirs() {
		unlock, err := n.Store.Lock(ctx, key)
		if err != nil {
			n.notInherited(key, err)
			continue
		}
		n.inherit(ctx, key)
		unlock()
	}
}

// HandOverLocked is HandOver for GC, which has locked the whole state folder.
func (n *Network) HandOverLocked(ctx context.Context) {
	for _, key := range n.heirs() {
		n.inherit(ctx, key)
	}
}

// heirs are the attachments that may have left ports to this one, the one
// with the container's default route first.
func (n *Network) heirs() []conf.Key {
	gone := n.Record
	if gone == nil || gone.Published == nil {
		return nil
	}
	keys := n.siblingKeys(gone.Key)
	if len(keys) > 1 {
		out := gone.Netns.WayOut()
		if at := slices.IndexFunc(keys, func(k conf.Key) bool { return k.IfName == out }); at > 0 {
			keys[0], keys[at] = keys[at], keys[0]
		}
	}
	return keys
}

// inherit publishes what is missing of an attachment's ports. Its lock is held.
func (n *Network) inherit(ctx context.Context, key conf.Key) {
	r, err := n.Store.Load(key)
	if err != nil || r.State != record.Ready || r.Published == nil {
		return // it went meanwhile, or has no ports
	}
	backend, err := nat.Open(r.Published.Backend)
	if err == nil {
		_, err = backend.Restore(ctx, []nat.Published{Published(r)})
	}
	if err != nil {
		n.notInherited(key, err)
	}
}

func (n *Network) notInherited(key conf.Key, err error) {
	n.Log.Warn("ports of another attachment of the container; \"ambi restore\" publishes them", "attachment", key, "error", err)
}
