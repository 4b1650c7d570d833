package nat

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ambi-cni/ambi/conf"
)

// backend is a [Backend]: what is the same for both kinds of rules, around what only
// one of them knows.
type backend struct{ rules }

var _ Backend = backend{}

// rules are those of one kind in the kernel, nftables' or iptables'.
type rules interface {
	// Name and Owners are the Backend's.
	Name() string
	Owners(ctx context.Context, network string) ([]conf.Key, error)
	// serves refuses mappings that rules of this kind cannot be made for here.
	serves(fs []forward) error
	// free is the error of the first mapping that cannot be beside what is there. The
	// interface of the host is not known yet.
	free(ctx context.Context, in intent) error
	// publish makes the rules, all or none. Done are the mappings that no sibling has.
	publish(ctx context.Context, in intent) (done []forward, err error)
	// unpublish removes what p.Owner has. Gone are the mappings whose conversations are to
	// be forgotten, also after an error: those it removed, and those of p that nobody has.
	unpublish(ctx context.Context, p Published) (gone []forward, err error)
	// missing names what is not there.
	missing(ctx context.Context, in intent) ([]string, error)
	// restore makes what is missing of all, whose owners it returns. Done are the
	// mappings that are now there, each once.
	restore(ctx context.Context, all []intent) (owners []conf.Key, done []forward, err error)
}

// intent is what an attachment publishes, resolved to what belongs in the kernel.
type intent struct {
	Published
	forwards []forward
	hostIf   string
}

func (p Published) resolve() (intent, error) {
	fs, err := p.forwards()
	if err != nil {
		return intent{}, err
	}
	hostIf, err := hostInterface(p)
	return intent{p, fs, hostIf}, err
}

func (b backend) Free(ctx context.Context, p Published) ([]uint32, error) {
	if len(p.Ports) == 0 {
		return nil, nil
	}
	fs, err := p.forwards()
	if err != nil {
		return nil, err
	}
	in := intent{Published: p, forwards: fs}
	reserved, err := b.admits(in)
	if err == nil {
		err = b.free(ctx, in)
	}
	return reserved, err
}

// admits is the error of what can be told without looking at the rules.
func (b backend) admits(in intent) (reserved []uint32, err error) {
	reserved, err = hostSocketsFree(in.Published, in.forwards)
	return reserved, errors.Join(validOwner(in.Owner), b.serves(in.forwards), err)
}

func (b backend) Add(ctx context.Context, p Published) error {
	if len(p.Ports) == 0 {
		return nil
	}
	in, err := p.resolve()
	if err != nil {
		return err
	}
	if _, err := b.admits(in); err != nil {
		return err
	}
	done, err := b.publish(ctx, in)
	if err != nil {
		return err
	}
	if err := opened([]intent{in}, done); err != nil {
		return errors.Join(err, b.Del(context.WithoutCancel(ctx), p))
	}
	return nil
}

func (b backend) Del(ctx context.Context, p Published) error {
	forget, err := b.Unpublish(ctx, p)
	return errors.Join(err, forget())
}

func (b backend) Unpublish(ctx context.Context, p Published) (forget func() error, err error) {
	gone, err := b.unpublish(ctx, p)
	return func() error { return forgetForwards(gone) }, err
}

func (b backend) Check(ctx context.Context, p Published) error {
	if len(p.Ports) == 0 {
		return nil
	}
	in, err := p.resolve()
	if err != nil {
		return err
	}
	if err := b.serves(in.forwards); err != nil {
		return err
	}
	missing, err := b.missing(ctx, in)
	if err != nil {
		return err
	}
	if err := checkLocalnet(in); err != nil {
		missing = append(missing, err.Error())
	}
	return notAsPublished(p.Owner, missing)
}

func (b backend) Restore(ctx context.Context, all []Published) ([]conf.Key, error) {
	ready, unready := intents(all)
	if len(ready) == 0 {
		return nil, unready
	}
	owners, done, err := b.restore(ctx, ready)
	return owners, errors.Join(unready, err, opened(ready, done))
}

// intents resolves records; one that cannot be is an error beside the others.
func intents(all []Published) ([]intent, error) {
	var ready []intent
	var errs []error
	for _, p := range all {
		if len(p.Ports) == 0 {
			continue
		}
		in, err := p.resolve()
		if err := errors.Join(validOwner(p.Owner), err); err != nil {
			errs = append(errs, err)
			continue
		}
		ready = append(ready, in)
	}
	return ready, errors.Join(errs...)
}

// opened is what follows once the rules are there: the sysctl of each attachment, and
// one look through connection tracking for the conversations that the kernel still
// sends where a port pointed before.
func opened(all []intent, done []forward) error {
	var errs []error
	for _, in := range all {
		errs = append(errs, allowLocalnet(in))
	}
	return errors.Join(append(errs, forgetElsewhere(done))...)
}

// notAsPublished is CHECK's error; nil when nothing is missing. It names the first
// few and counts the rest.
func notAsPublished(owner conf.Key, missing []string) error {
	const shown = 5
	if len(missing) == 0 {
		return nil
	}
	list := strings.Join(missing[:min(shown, len(missing))], "; ")
	if more := len(missing) - shown; more > 0 {
		list += fmt.Sprintf("; and %d more", more)
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "published ports of container %s of network %s are not as they should be: %s", owner.ContainerID, owner.Network, list), "\"ambi restore\" puts them back")
}
