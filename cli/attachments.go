package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// attachment is a record and what is found of it now.
type attachment struct {
	conf.Key
	app    *app
	store  *record.Store
	record *record.Record   // nil when it cannot be read
	result *types100.Result // nil before ADD had one
	health
}

func (t *attachment) rootless() bool {
	return t.record != nil && t.record.Mode == conf.ModeRootless
}

// dirs are the state folders that a command looks in: the default ones, or that of
// its flag.
func (a *app) dirs() []string {
	return record.Dirs(a.stateDir, os.Getenv("XDG_RUNTIME_DIR"))
}

const stateDirHint = "run as the user who started the containers, and give the folder of the key stateDir, if it is set, with --state-dir"

// stores are those of the folders that are there and ours. A default folder that is
// somebody else's, or a link that anybody may have made in /tmp, holds nothing of
// ours; one that was asked for has to be right.
func (a *app) stores() ([]*record.Store, error) {
	var stores []*record.Store
	var passed error
	for _, dir := range a.dirs() {
		store, err := record.OpenExisting(dir)
		switch {
		case err == nil:
			stores = append(stores, store)
		case a.stateDir != "" || !record.Elsewhere(err):
			return nil, hinted(err, stateDirHint)
		case !errors.Is(err, fs.ErrNotExist):
			passed = err
		}
	}
	if len(stores) == 0 && passed != nil {
		a.passedOver.Do(func() { fmt.Fprintf(a.errOut, "passed over: %s\n", conf.Message(passed)) })
	}
	return stores, nil
}

// attachments are those of all folders, sorted by name; those that the arguments
// name, or all without any.
func (a *app) attachments(args []string) ([]*attachment, error) {
	stores, err := a.stores()
	if err != nil {
		return nil, err
	}
	var all []*attachment
	for _, store := range stores {
		records, damaged, err := store.List()
		if err != nil {
			return nil, hinted(fmt.Errorf("listing the records in %s: %w", store.Dir(), err), stateDirHint)
		}
		for _, r := range records {
			all = append(all, &attachment{Key: r.Key, app: a, store: store, record: r, result: resultOf(r)})
		}
		for _, key := range damaged {
			all = append(all, &attachment{Key: key, app: a, store: store})
		}
	}
	slices.SortFunc(all, func(x, y *attachment) int {
		return cmp.Or(cmp.Compare(x.Network, y.Network), cmp.Compare(x.ContainerID, y.ContainerID), cmp.Compare(x.IfName, y.IfName))
	})
	return a.named(all, args)
}

// resultOf is what ADD returned; nil without.
func resultOf(r *record.Record) *types100.Result {
	var result types100.Result
	if len(r.Result) == 0 || json.Unmarshal(r.Result, &result) != nil {
		return nil
	}
	return &result
}

// named picks the attachments that the arguments name, each once.
func (a *app) named(all []*attachment, args []string) ([]*attachment, error) {
	if len(args) == 0 {
		return all, nil
	}
	var picked []*attachment
	for _, arg := range args {
		found, err := a.find(all, arg)
		if err != nil {
			return nil, err
		}
		for _, t := range found {
			if !slices.Contains(picked, t) {
				picked = append(picked, t)
			}
		}
	}
	return picked, nil
}

// find is what ID stands for: a container ID, the beginning of one, or
// NETWORK/CONTAINER/IFNAME.
func (a *app) find(all []*attachment, id string) ([]*attachment, error) {
	exact := selected(all, func(t *attachment) bool { return t.ContainerID == id || t.String() == id })
	if len(exact) > 0 {
		return exact, nil
	}
	begins := selected(all, func(t *attachment) bool { return id != "" && strings.HasPrefix(t.ContainerID, id) })
	for _, t := range begins {
		if t.ContainerID != begins[0].ContainerID {
			return nil, hinted(fmt.Errorf("%q is the beginning of several container IDs: %s", id, namesText(begins)), "give more of the ID")
		}
	}
	if len(begins) == 0 {
		return nil, hinted(fmt.Errorf("no attachment of a container %q in %s", id, strings.Join(a.dirs(), ", ")),
			"\"ambi list\" lists what is there; "+stateDirHint)
	}
	return begins, nil
}

// one is the single attachment that an argument stands for.
func (a *app) one(id string) (*attachment, error) {
	found, err := a.attachments([]string{id})
	if err != nil {
		return nil, err
	}
	if len(found) > 1 {
		return nil, hinted(fmt.Errorf("container %q has several attachments: %s", id, namesText(found)), "name one of these")
	}
	return found[0], nil
}

func namesText(attachments []*attachment) string {
	texts := make([]string, len(attachments))
	for i, t := range attachments {
		texts[i] = t.String()
	}
	return strings.Join(texts, ", ")
}

func selected(all []*attachment, is func(*attachment) bool) []*attachment {
	var some []*attachment
	for _, t := range all {
		if is(t) {
			some = append(some, t)
		}
	}
	return some
}

// lock keeps verbs away from the attachment and reads its record anew.
func (t *attachment) lock(ctx context.Context, a *app) (unlock func(), err error) {
	defer a.progress("waiting for another verb at work on %s", t.Key)()
	unlock, err = t.store.Lock(ctx, t.Key)
	if err != nil {
		return nil, err
	}
	t.record, err = t.store.Load(t.Key)
	if err != nil {
		unlock()
		return nil, fmt.Errorf("record of %s: %w", t.Key, err)
	}
	return unlock, nil
}
