package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/root"
	"github.com/ambi-cni/ambi/rootless"
)

// network attaches one container interface. Each method is the CNI verb of the
// same name.
type network interface {
	Add(ctx context.Context, a *conf.Attachment) (*types100.Result, error)
	Check(ctx context.Context, a *conf.Attachment) error
	Del(ctx context.Context, a *conf.Attachment) error
}

var (
	_ network = (*root.Network)(nil)
	_ network = (*rootless.Network)(nil)
)

func (v *verbs) network(mode conf.Mode, store *record.Store, r *record.Record) network {
	if mode == conf.ModeRoot {
		return v.root(store, r)
	}
	return &rootless.Network{Store: store, Record: r, Step: v.log.step, RuntimeDir: v.runtimeDir}
}

func (v *verbs) root(store *record.Store, r *record.Record) *root.Network {
	return &root.Network{
		Store: store, Record: r, Log: v.log.Logger, Step: v.log.step,
		Evict: func(ctx context.Context) { v.evict(ctx) },
	}
}

// add is ADD: all or nothing.
func (v *verbs) add(ctx context.Context) (err error) {
	a := v.attachment
	if err := makeable(a.IfName); err != nil {
		return err
	}
	mode, err := chooseMode(a.NetConf.Mode, ownRights())
	if err != nil {
		return err
	}
	if err := confinable(a.NetConf.Hardening); err != nil {
		return err
	}
	netns, err := v.containerNetns()
	if err != nil {
		return err
	}
	store, err := record.OpenFirst(v.stateDirs)
	if err != nil {
		return err
	}
	unlock, err := store.Lock(ctx, a.Key)
	if err != nil {
		return err
	}
	v.log.step("lock")
	r := record.New(a, mode, netns)
	defer func() {
		unlock()
		switch {
		case err != nil:
			v.root(store, r).HandOver(ctx)
		case r.Published != nil:
			v.root(store, r).Claim(ctx)
		}
	}()
	if err := v.clearLeftover(ctx, store, netns); err != nil {
		return err
	}
	n := v.network(mode, store, r)
	result, err := v.attach(ctx, n, store, r)
	if err != nil {
		return v.rollBack(ctx, n, store, r, err)
	}
	v.log.step("save the result")
	if err := types.PrintResult(conf.Before110(result, v.outVersion()), v.outVersion()); err != nil {
		// Nobody knows of this attachment, so nobody would take it down.
		return v.rollBack(ctx, n, store, r, conf.Errorf(types.ErrIOFailure, "printing the result: %v", err))
	}
	return nil
}

// attach is what may fail half way. The network saves the record before its first
// change.
func (v *verbs) attach(ctx context.Context, n network, store *record.Store, r *record.Record) (*types100.Result, error) {
	prev, err := root.PrevResult(v.netConf)
	if err != nil {
		return nil, err
	}
	result, err := v.addInTurn(ctx, n, r)
	if ctx.Err() != nil {
		return nil, interrupted(ctx) // an error says no more than where that was
	}
	if err != nil {
		return nil, err
	}
	if r.Result, err = json.Marshal(withPrevious(prev, result)); err != nil {
		return nil, fmt.Errorf("result of %s: %w", r.Key, err)
	}
	r.State = record.Ready
	if r.Hub != "" {
		result = ofContainer(result)
	}
	return withPrevious(prev, result), store.Save(r)
}

// rollBack is DEL, and then the error that made it necessary. Without a record
// nothing was changed yet.
func (v *verbs) rollBack(ctx context.Context, n network, store *record.Store, r *record.Record, cause error) error {
	if !undoes {
		return cause
	}
	var err error
	if r.Saved() {
		// What ended ADD must not end its undo.
		err = n.Del(context.WithoutCancel(ctx), v.attachment)
		if err == nil {
			err = store.Remove(v.attachment.Key)
		}
	}
	if err == nil {
		err = store.RemoveLock(v.attachment.Key)
	}
	if err == nil {
		return cause
	}
	v.log.Warn("taking back a failed ADD", "attachment", v.attachment.Key, "error", err)
	var e *types.Error
	if !errors.As(cause, &e) {
		e = conf.Errorf(types.ErrInternal, "%v", cause)
	}
	both := *e
	return conf.Mendf(&both, "and taking back what was done failed, DEL will try again: %v", err)
}

// outVersion is the version a result is printed in; absent means 0.1.0
// (the library's version.ConfigDecoder).
func (v *verbs) outVersion() string {
	if v.netConf.CNIVersion == "" {
		return "0.1.0"
	}
	return v.netConf.CNIVersion
}

// containerNetns makes sure, before anything is done, that CNI_NETNS is a network
// namespace and not our own.
func (v *verbs) containerNetns() (record.Netns, error) {
	path := v.attachment.NetnsPath
	f, netns, err := record.OpenNetns(path)
	if err != nil {
		return record.Netns{}, err
	}
	defer f.Close()
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return record.Netns{}, fmt.Errorf("our own network namespace: %w", err)
	}
	theirs, err := f.Stat()
	if err == nil && os.SameFile(own, theirs) && !v.override {
		return record.Netns{}, record.NetnsError(path, "it is the plugin's own network namespace",
			"give the container one of its own (set CNI_NETNS_OVERRIDE=1 if this is meant)")
	}
	return netns, err
}

// clearLeftover makes room for a new attachment: what a killed ADD left is taken
// away; a living attachment of the same name is an error.
func (v *verbs) clearLeftover(ctx context.Context, store *record.Store, netns record.Netns) error {
	old, err := store.Load(v.attachment.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		v.log.Warn("a damaged record", "error", err)
		old = nil
	case old.State == record.Ready && old.Netns.Same(netns) && !v.broken(store, old):
		return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "attachment %s exists already", old.Key), "call DEL before another ADD")
	}
	return v.detach(ctx, store, old)
}

// broken says that the network of a record does not work any more, for sure.
func (v *verbs) broken(store *record.Store, r *record.Record) bool {
	return r.Mode == conf.ModeRootless && !rootless.Alive(store, r)
}

// check is CHECK: it changes nothing.
func (v *verbs) check(ctx context.Context) error {
	a := v.attachment
	if a.NetConf.PrevResult == nil {
		return conf.Errorf(types.ErrInvalidNetworkConfig, "CHECK needs the key \"prevResult\", the result of ADD, which is missing")
	}
	store, r, err := v.findRecord(a.Key)
	if err != nil {
		return err
	}
	if r == nil || r.State != record.Ready {
		return conf.Mendf(conf.Errorf(types.ErrUnknownContainer, "attachment %s has no record of a finished ADD in %v", a.Key, v.stateDirs), "call ADD")
	}
	return v.network(r.Mode, store, r).Check(ctx, a)
}

// makeable says whether Linux makes an interface of that name. It would take "eth%d" for a
// pattern, so that the interface had another one, which nobody could find again.
func makeable(ifName string) error {
	if strings.Contains(ifName, "%") || ifName == "all" || ifName == "default" {
		return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q: Linux makes no interface of that name", ifName), "choose another one")
	}
	return nil
}

// del is DEL: it succeeds for what is gone already.
func (v *verbs) del(ctx context.Context) error {
	store, _, err := v.findRecord(v.attachment.Key)
	if store == nil && err == nil {
		store, err = record.OpenFirst(v.stateDirs)
	}
	if err != nil {
		return err
	}
	gone, err := v.delLocked(ctx, store)
	if err == nil {
		v.root(store, gone).HandOver(ctx)
	}
	return err
}

// delLocked returns the record that the attachment had; nil without.
func (v *verbs) delLocked(ctx context.Context, store *record.Store) (*record.Record, error) {
	unlock, err := store.Lock(ctx, v.attachment.Key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := store.Load(v.attachment.Key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.log.Warn("a damaged record; working from the configuration", "error", err)
	}
	if err := v.detach(ctx, store, r); err != nil {
		return r, err
	}
	return r, store.RemoveLock(v.attachment.Key)
}

// detach takes one attachment down, by its record, else by what the caller
// says, and removes the record when that succeeded.
func (v *verbs) detach(ctx context.Context, store *record.Store, r *record.Record) error {
	if r == nil {
		return v.detachUnrecorded(ctx, store)
	}
	a, err := r.Attachment()
	if err != nil {
		v.log.Warn("a record of another configuration; working from what can be read", "error", err)
	}
	a.Path = slices.Clone(v.attachment.Path)
	for _, dir := range r.Path {
		if !slices.Contains(a.Path, dir) {
			a.Path = append(a.Path, dir)
		}
	}
	if err := v.network(r.Mode, store, r).Del(ctx, a); err != nil {
		return err
	}
	return store.Remove(r.Key)
}

// detachUnrecorded does what can be done without a record, in both modes: the
// one that ADD chose is not known.
func (v *verbs) detachUnrecorded(ctx context.Context, store *record.Store) error {
	errs := []error{v.network(conf.ModeRootless, store, nil).Del(ctx, v.attachment)}
	if mode, err := chooseMode(v.netConf.Mode, ownRights()); err == nil && mode == conf.ModeRoot {
		errs = append(errs, v.network(conf.ModeRoot, store, nil).Del(ctx, v.attachment))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return store.Remove(v.attachment.Key)
}

// findRecord looks for a record in every folder it may be in; DEL may come from another
// environment than ADD did. store is the folder that it is in. A store without a record
// says that the one in there cannot be read; neither, that there is none.
func (v *verbs) findRecord(key conf.Key) (store *record.Store, r *record.Record, err error) {
	var damaged *record.Store
	for _, dir := range v.stateDirs {
		store, err := record.OpenExisting(dir)
		if err != nil && record.Elsewhere(err) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		r, err := store.Load(key)
		if err == nil {
			return store, r, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, record.ErrUnreadable) {
			return nil, nil, fmt.Errorf("record of %s: %w", key, err)
		}
		if errors.Is(err, record.ErrUnreadable) && damaged == nil {
			damaged = store
		}
	}
	if damaged == nil {
		store, r = v.findElsewhere(key)
		return store, r, nil
	}
	return damaged, nil, nil
}

// findElsewhere finds the record in the folder of a supervisor that runs, where nobody would look who
// has another stateDir or XDG_RUNTIME_DIR than ADD had. It has to be of the very namespace: another
// runtime of this user may have a container of that name.
func (v *verbs) findElsewhere(key conf.Key) (*record.Store, *record.Record) {
	f, netns, err := record.OpenNetns(v.attachment.NetnsPath)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	for _, dir := range rootless.StateDirs(key.Network) {
		store, err := record.OpenExisting(dir)
		if err != nil {
			continue
		}
		if r, err := store.Load(key); err == nil && r.Netns.Same(netns) {
			v.log.Warn("the record is in another state folder, as stateDir or XDG_RUNTIME_DIR was another at ADD: an ADD in this environment makes a second network of this name",
				"attachment", key, "folder", dir)
			return store, r
		}
	}
	return nil, nil
}

// confinable is an error, of code 50, where the configuration requires that processes which stay
// are confined by all means, and this kernel does not have them.
func confinable(h conf.Hardening) error {
	lacks := confine.Lacks()
	if h != conf.HardeningRequire || len(lacks) == 0 {
		return nil
	}
	var missing []string
	for _, l := range lacks {
		missing = append(missing, l.Error())
	}
	return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "confining ambi's processes, as key \"hardening\" requires: the kernel lacks %s", strings.Join(missing, "; ")),
		"boot with it (CONFIG_SECCOMP_FILTER; landlock in lsm=, Linux 5.13), allow it in the profile that the caller runs in, or set hardening to best-effort")
}

// status is STATUS: code 50 with the remedy when ADD could not work.
func (v *verbs) status(ctx context.Context) error {
	mode, err := chooseMode(v.netConf.Mode, ownRights())
	if err != nil {
		return conf.Errorf(conf.ErrPluginNotAvailable, "%v", err)
	}
	if err := confinable(v.netConf.Hardening); err != nil {
		return err
	}
	store, err := record.OpenFirst(v.stateDirs)
	if err != nil {
		return conf.Errorf(conf.ErrPluginNotAvailable, "%v", err)
	}
	if mode == conf.ModeRootless {
		return rootless.Available(v.netConf.Rootless, store.Dir())
	}
	return v.root(store, nil).Status(ctx, v.attachment)
}
