package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/plugin/record"
	"github.com/ambi-cni/ambi/portmap/nat"
)

// restore puts the published ports of every attachment back into the firewall
// after something flushed it, from the records. It is "ambi restore [-state-dir
// DIR]".
func restore(ctx context.Context, args []string, out io.Writer) error {
	dirs, err := stateDirs("restore", args)
	if err != nil {
		return err
	}
	j, err := openJournal(ctx, dirs)
	defer j.close()
	if err != nil {
		return err
	}
	published, errs := j.published(out)
	if len(published) == 0 && len(errs) == 0 {
		fmt.Fprintf(out, "no attachment with published ports in %s\n", strings.Join(dirs, ", "))
	}
	for _, backend := range []conf.Backend{conf.BackendNFTables, conf.BackendIPTables} {
		if all := published[backend]; len(all) > 0 {
			errs = append(errs, restoreWith(ctx, backend, all, out))
		}
	}
	return errors.Join(errs...)
}

// restoreWith puts back the ports of one backend, in one transaction.
func restoreWith(ctx context.Context, name conf.Backend, all []nat.Published, out io.Writer) error {
	const remedy = "run as root, in the network namespace that the containers were started from"
	backend, err := nat.Open(name)
	if err != nil {
		return hinted(err, remedy)
	}
	restored, err := backend.Restore(ctx, all)
	for _, p := range all {
		if slices.Contains(restored, p.Owner) {
			fmt.Fprintf(out, "restored %s: %s\n", p.Owner, portList(p.Ports))
		}
	}
	fmt.Fprintf(out, "%s: %d of %d attachments restored\n", name, len(restored), len(all))
	if err != nil {
		return hinted(fmt.Errorf("%s: %w", name, err), "a port that somebody else has by now comes back when that is gone and ambi restore is run again; else "+remedy)
	}
	return nil
}

func portList(ports []conf.PortMapping) string {
	texts := make([]string, len(ports))
	for i, m := range ports {
		texts[i] = m.String()
	}
	return strings.Join(texts, ", ")
}

// stateDirs are the folders that a command looks in: the default ones, or that of
// its flag.
func stateDirs(name string, args []string) ([]string, error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dir := flags.String("state-dir", "", "")
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		return nil, hinted(fmt.Errorf("%w: %w", errUsage, err), "it is: ambi "+name+" [-state-dir DIR], DIR being the key stateDir of the network where it is set")
	}
	if *dir != "" {
		return []string{*dir}, nil
	}
	uidMap, _ := os.ReadFile("/proc/self/uid_map") // none: our uid is everybody's
	return record.DefaultDirs(os.Geteuid(), os.Getenv("XDG_RUNTIME_DIR"), string(uidMap)), nil
}

// journal is the state folders that are there, with all verbs locked out.
type journal struct {
	stores  []*record.Store
	unlocks []func()
}

// lockPatience bounds the wait for the verbs at work.
const lockPatience = 2 * time.Minute

func openJournal(ctx context.Context, dirs []string) (*journal, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockPatience, fmt.Errorf("for over %s", lockPatience))
	defer cancel()
	j := &journal{}
	for _, dir := range dirs {
		store, err := record.OpenExisting(dir)
		if errors.Is(err, fs.ErrNotExist) && len(dirs) > 1 {
			continue // no attachment was ever made from there
		}
		if err != nil {
			return j, hinted(err, "run as the user who started the containers, and give the folder of the key stateDir, if it is set, with -state-dir")
		}
		unlock, err := store.LockAll(ctx)
		if err != nil {
			return j, hinted(err, "a CNI verb is at work; try again later")
		}
		j.stores, j.unlocks = append(j.stores, store), append(j.unlocks, unlock)
	}
	return j, nil
}

func (j *journal) close() {
	for _, unlock := range j.unlocks {
		unlock()
	}
}

// published is what the records say should be published, by backend. What should
// not be any more is told on out.
func (j *journal) published(out io.Writer) (map[conf.Backend][]nat.Published, []error) {
	all := map[conf.Backend][]nat.Published{}
	var errs []error
	for _, store := range j.stores {
		records, damaged, err := store.List()
		if err != nil {
			errs = append(errs, err)
		}
		for _, key := range damaged {
			errs = append(errs, hinted(fmt.Errorf("record %s cannot be read", store.Path(key, "json")), "call DEL and ADD of "+key.String()))
		}
		for _, r := range records {
			switch {
			case r.Published == nil:
			case r.State != record.Ready:
				fmt.Fprintf(out, "skipped %s: its ADD did not finish; DEL or GC takes it away\n", r.Key)
			case r.Netns.Gone():
				fmt.Fprintf(out, "skipped %s: its namespace is gone; DEL or GC takes it away\n", r.Key)
			default:
				all[r.Published.Backend] = append(all[r.Published.Backend], publishedBy(r))
			}
		}
	}
	return all, errs
}

func publishedBy(r *record.Record) nat.Published {
	p := r.Published
	return nat.Published{Owner: r.Key, IPs: p.IPs, Ports: r.Ports, SNAT: p.SNAT, HostIf: p.HostIf}
}
