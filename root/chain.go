package root

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/delegate"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/record"
)

// chain is the one place that chooses what makes the interface: the delegates of the
// record when there is one, since the caller may have edited its configuration; else
// those of the configuration, or of the conflist that it names; else the built-in
// chain, unless another plugin has made the interface.
func (n *Network) chain(a *conf.Attachment) (*delegate.Chain, error) {
	chain := &delegate.Chain{Attachment: a, Logger: n.Log.With(about(a.Key)), CacheDir: n.Store.Dir(), Timeout: a.NetConf.DelegateTimeout}
	var err error
	switch {
	case n.Record != nil && n.Record.Saved():
		chain.DisableCheck = n.Record.DisableCheck
		chain.Delegates, err = recorded(n.Record)
	case a.NetConf.DelegatesFrom != "":
		var l *conf.Conflist
		if l, err = findConflist(a.NetConf.DelegatesFrom); err == nil {
			chain.DisableCheck, chain.DisableGC = l.DisableCheck, l.DisableGC
			chain.Delegates, err = a.NetConf.DelegatesOf(l)
		}
	case !a.NetConf.BuiltIn():
		chain.Delegates = a.NetConf.Delegates
	case a.NetConf.PrevResult == nil || n.unchained(a):
		chain.Delegates, err = delegate.Default(a.NetConf.Bridge, a.Network, filepath.Join(n.Store.Dir(), "ipam"), a.Path, delegate.DefaultRoutes(a.NetnsPath)...)
	}
	return chain, err
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

// unchained says, for a DEL or CHECK without a record, that prevResult is our own
// result and not that of a plugin before us: CHECK and DEL always have one.
func (n *Network) unchained(a *conf.Attachment) bool {
	if n.Record != nil {
		return false
	}
	result, err := PrevResult(a.NetConf)
	if err != nil || result == nil {
		return true
	}
	bridge := delegate.BridgeName(a.NetConf.Bridge, a.Network)
	return slices.ContainsFunc(result.Interfaces, func(i *types100.Interface) bool { return i.Name == bridge && i.Sandbox == "" })
}

// PrevResult is the configuration's prevResult in the newest form; nil without. One
// without a cniVersion has that of the configuration (cni#895).
func PrevResult(n *conf.NetConf) (*types100.Result, error) {
	if n.PrevResult == nil {
		return nil, nil
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

// withRemedy adds what to do to an error that bridge of the built-in chain leaves
// without.
func withRemedy(err error, a *conf.Attachment) error {
	var e *types.Error
	if !a.NetConf.BuiltIn() || !errors.As(err, &e) || !strings.Contains(e.Msg, "already has an IP address different from") {
		return err
	}
	return conf.Mendf(types.NewError(types.ErrInvalidNetworkConfig, e.Msg, e.Details),
		"the bridge has the address of a bridge.subnet of before: when no container is on it any more delete it (ip link del %s), or set the key bridge.name to another one",
		delegate.BridgeName(a.NetConf.Bridge, a.Network))
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
