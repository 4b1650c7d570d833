package root

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
)

// GC removes what the network has on this host and no record explains: published ports,
// addresses with what is bound to them. Then it passes GC on to the delegates that know
// it, if there are any. unexplained says whether what an attachment has may go; collect is its DEL.
// Nobody else may be at work in the state folder.
func (n *Network) GC(ctx context.Context, a *conf.Attachment, unexplained func(conf.Key) bool, collect func(context.Context, conf.Key) error) error {
	errs := []error{n.collectPorts(ctx, a.NetConf, unexplained)}
	listed := a.NetConf.ValidAttachments != nil
	if !listed && !a.NetConf.BuiltIn() {
		return errors.Join(errs...)
	}
	m, err := n.choose(a)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if m.builtIn != nil {
		defer m.close()
		return errors.Join(append(errs, m.collect(ctx, listed, unexplained, collect))...)
	}
	var kept []types.GCAttachment
	for _, holder := range m.chain.Holders() {
		key := conf.Key{Network: a.Network, ContainerID: holder.ContainerID, IfName: holder.IfName}
		if unexplained(key) {
			err := collect(ctx, key)
			errs = append(errs, err)
			if err == nil {
				continue
			}
		}
		kept = append(kept, holder)
	}
	return errors.Join(append(errs, m.chain.GC(ctx, a.NetConf.ValidAttachments, kept))...)
}

func (n *Network) collectPorts(ctx context.Context, c *conf.NetConf, unexplained func(conf.Key) bool) error {
	if c.Portmap.Backend == conf.BackendNone {
		return nil
	}
	backend, err := nat.Open(c.Portmap.Backend)
	if err != nil {
		n.Log.Warn("GC: looking for published ports", "error", err)
		return nil
	}
	owners, err := backend.Owners(ctx, c.Name)
	if err != nil {
		return fmt.Errorf("listing the owners of published ports: %w", err)
	}
	var errs []error
	for _, owner := range owners {
		if unexplained(owner) {
			n.Log.Warn("GC: removing ports without a record", "attachment", owner)
			errs = append(errs, backend.Del(ctx, nat.Published{Owner: owner}))
		}
	}
	return errors.Join(errs...)
}
