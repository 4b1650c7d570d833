package root

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/delegate"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/record"
)

// maker is what makes the interface: the built-in network, or a chain of delegates,
// which is empty where another plugin has made it.
type maker struct {
	*builtIn // nil: the chain
	chain    *delegate.Chain
	cannot   error // why there is no built-in network here, where it may be of no matter
}

// choose is the one place that chooses what makes the interface: what the record names
// when there is one, since the caller may have edited its configuration; else the
// delegates of the configuration, or of the conflist that it names; else the built-in
// network, unless another plugin has made the interface.
func (n *Network) choose(a *conf.Attachment) (m maker, err error) {
	m.chain = &delegate.Chain{Attachment: a, Logger: n.Log.With(about(a.Key)), CacheDir: n.Store.Dir(), Timeout: a.NetConf.DelegateTimeout}
	switch {
	case n.Record != nil && n.Record.Saved() && n.Record.Bridge != "":
		network := a.NetConf.Bridge
		network.Name = n.Record.Bridge
		m.builtIn, err = n.openBuiltIn(a, network)
	case n.Record != nil && n.Record.Saved():
		// An ambi before this one recorded the delegates of its built-in chain as well.
		m.chain.DisableCheck = n.Record.DisableCheck
		m.chain.Delegates, err = recorded(n.Record)
	case a.NetConf.DelegatesFrom != "":
		var l *conf.Conflist
		if l, err = findConflist(a.NetConf.DelegatesFrom); err == nil {
			m.chain.DisableCheck, m.chain.DisableGC = l.DisableCheck, l.DisableGC
			m.chain.Delegates, err = a.NetConf.DelegatesOf(l)
		}
	case !a.NetConf.BuiltIn():
		m.chain.Delegates = a.NetConf.Delegates
	case a.NetConf.PrevResult == nil || n.Record == nil:
		// A DEL without a record has a prevResult in any case; the built-in network knows
		// what is its own.
		m.builtIn, err = n.openBuiltIn(a, a.NetConf.Bridge)
		if err != nil && n.Record == nil {
			// The entry may be one behind another plugin, on a kernel without nf_tables.
			n.Log.Info("there can be no built-in network here, which is of no matter behind another plugin", "network", a.Network, "error", err)
			m.cannot, err = err, nil
		}
	}
	return m, err
}

// recorded are the delegates of a record.
func recorded(r *record.Record) (delegates []conf.Delegate, err error) {
	for i, raw := range r.Delegates {
		d, err := conf.ParseDelegate(fmt.Sprintf("record.delegates[%d]", i), raw)
		if err != nil {
			return nil, err
		}
		delegates = append(delegates, d)
	}
	return delegates, nil
}

// about is what a delegate's line in the log is about. STATUS and GC concern a network
// and no container.
func about(key conf.Key) slog.Attr {
	if key.ContainerID == "" {
		return slog.String("network", key.Network)
	}
	return slog.Any("attachment", key)
}

// PrevResult is the configuration's prevResult in the newest form; nil without. One
// without a cniVersion has that of the configuration (cni#895).
func PrevResult(n *conf.NetConf) (*types100.Result, error) {
	if n.PrevResult == nil {
		return nil, nil
	}
	if !bytes.HasPrefix(bytes.TrimSpace(n.PrevResult), []byte("{")) {
		return nil, conf.Errorf(types.ErrDecodingFailure, "key \"prevResult\": the result of ADD is a JSON object, and not %.40s", n.PrevResult)
	}
	result, err := delegate.ParseResult(n.PrevResult, n.CNIVersion)
	if err != nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "key \"prevResult\": %v", err)
	}
	return result, nil
}

// unsupported refuses what the runtime asks for and nobody here gives, rather than
// leaving it out.
func unsupported(a *conf.Attachment, delegates []conf.Delegate) error {
	if !a.NetConf.RuntimeConfig.Wants("bandwidth") || slices.ContainsFunc(delegates, func(d conf.Delegate) bool { return d.Capabilities["bandwidth"] }) {
		return nil
	}
	return conf.Mendf(conf.Unsupported("runtimeConfig.bandwidth", a.NetConf.RuntimeConfig.Raw["bandwidth"], "no delegate here limits it"), "put the plugin bandwidth behind ambi in the conflist, or take the capability bandwidth away from ambi's entry")
}

// busy has the delegates, and what they start, hold the lock BASE.busy while run
// runs them. When we are killed the kernel kills the delegate with us, but not
// what that has started, such as its IPAM plugin; the next verb waits for that.
func (n *Network) busy(chain *delegate.Chain, run func() error) error {
	path := n.Store.Path(chain.Attachment.Key, "busy")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		defer f.Close()
		err = flock.Try(f, flock.Exclusive)
	}
	if err != nil {
		return fmt.Errorf("lock %s of the delegates: %w", path, err)
	}
	defer func() {
		// A delegate may leave a daemon behind, which is not to be waited for.
		_ = flock.Unlock(f)
		os.Remove(path)
	}()
	chain.Inherit = f
	return run()
}

func (n *Network) note(_ int, result *types100.Result) (err error) {
	if n.Record.Result, err = json.Marshal(result); err != nil {
		return err
	}
	return n.Store.Save(n.Record)
}
