package root

import (
	"context"
	"log/slog"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/names"
	"github.com/ambi-cni/ambi/record"
)

// serveNames has the network's name server run, and returns the DNS of the result.
func (n *Network) serveNames(ctx context.Context, a *conf.Attachment, result *types100.Result) (types.DNS, error) {
	servers := names.Gateways(result, a.IfName)
	_, err := names.Place{Store: n.Store, Network: a.Network}.Ensure(ctx, n.Record.Bridge, servers)
	n.Step("name server")
	return names.DNS(a.NetConf, servers), err
}

// leaveNames takes a container's names away before anything else of it, so that of two
// that leave at a time one ends the name server.
func (n *Network) leaveNames() error {
	if n.Record == nil || names.NetworkOf(n.Record) == "" {
		return nil
	}
	n.Record.State = record.Leaving
	return n.Store.Save(n.Record)
}

func (n *Network) settleNames(ctx context.Context, network string) error {
	return SettleNames(ctx, n.Log, n.Store, network)
}

// SettleNames has a network's name server as the records say: it is started again when it
// has died, and ended when nobody is left.
func SettleNames(ctx context.Context, log *slog.Logger, store *record.Store, network string) error {
	revived, err := names.Place{Store: store, Network: network}.Settle(ctx)
	if revived {
		log.Warn("the name server of the network had ended, it is started again", "network", network, "error", err)
		return nil // the containers are the others'
	}
	return err
}
