package delegate

import (
	"cmp"
	"context"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/inside"
)

// Add runs ADD of every delegate, each with the result of the one before it (prev
// for the first; nil for none), and returns the last result.
//
// Nothing runs unless all binaries are there and the namespace has no interface
// of the wanted name yet. When a delegate fails, the ones that ran are undone by
// their DEL in reverse order, the failed one included (specification section 4).
// The error is the failed delegate's, and what could not be undone is in its
// details.
func (c *Chain) Add(ctx context.Context, prev *types100.Result) (*types100.Result, error) {
	if err := c.Ready(prev); err != nil {
		return nil, err
	}
	if len(c.Delegates) == 0 {
		return prev, nil
	}
	container, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer container.Close()
	for i, d := range c.Delegates {
		result, stray, err := c.addOne(ctx, i, d, prev, container)
		if err != nil {
			if result == nil {
				stray = c.strayedAndFailed(container)
			}
			failed := annotate(d.Type, err)
			if undo := c.undo(ctx, i, cmp.Or(result, prev), stray); undo != nil {
				failed = conf.Mendf(failed, "not undone: %v", undo)
			}
			if stray != nil {
				stray.Close()
			}
			return nil, failed
		}
		prev = result
	}
	return prev, nil
}

// Ready says whether ADD could run, which changes nothing: all binaries are there,
// and the namespace has no interface of the wanted name yet.
func (c *Chain) Ready(prev *types100.Result) error {
	if err := c.Find(); err != nil {
		return err
	}
	return c.interfaceFree(prev)
}

// addOne returns the result, also with the error that the delegate has worked in
// another namespace than the container's, and then that namespace.
func (c *Chain) addOne(ctx context.Context, i int, d conf.Delegate, prev *types100.Result, container *os.File) (*types100.Result, *os.File, error) {
	out, v, err := c.call(ctx, d, request{verb: "ADD", netns: c.Attachment.NetnsPath, prev: prev}, "")
	if err != nil {
		return nil, nil, err
	}
	result, err := ParseResult(out, v)
	if err != nil {
		return nil, nil, err
	}
	if err := bounded(result); err != nil {
		return nil, nil, err
	}
	if stray := c.strayed(container, result); stray != nil {
		return result, stray, c.swapped()
	}
	if c.AfterEach != nil {
		if err := c.AfterEach(i, result); err != nil {
			return nil, nil, conf.Errorf(types.ErrIOFailure, "recording the result: %v", err)
		}
	}
	return result, nil, nil
}

// undo runs DEL of the first delegates up to and including last. The result they
// get is that of the delegate before last when last has made none. stray is the
// namespace they worked in when it is not the container's.
func (c *Chain) undo(ctx context.Context, last int, result *types100.Result, stray *os.File) error {
	if !undoes {
		return nil
	}
	ran := *c
	ran.Delegates = c.Delegates[:last+1]
	ran.NetnsKnown, ran.stray = true, stray
	// A time-out of the whole ADD must not leave half of it behind.
	err := ran.Del(context.WithoutCancel(ctx), result)
	if err != nil {
		c.log().Warn("a failed ADD could not be undone", "error", err)
	}
	return err
}

// interfaceFree makes sure that the interface of ADD is not there yet. A delegate
// would find out too, but then the undo of its failure would take away the
// interface of somebody else (specification section 2, "ADD": the plugin must
// return an error). With a prevResult the interface is that of the plugins before
// us, unless the first delegate would make one.
func (c *Chain) interfaceFree(prev *types100.Result) error {
	a := c.Attachment
	if len(c.Delegates) == 0 {
		return nil
	}
	first := c.Delegates[0].Type
	makes := kinds[first] != "" || first == "host-device"
	if !makes && (prev != nil || a.IfName == "lo") {
		return nil // every namespace has a loopback interface, and a plugin of that name sets it up
	}
	link, err := inside.Link(a.NetnsPath, a.IfName)
	if err != nil {
		return conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q: %v", a.NetnsPath, err)
	}
	if link != nil {
		return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q: the namespace has an interface of that name already", a.IfName), "choose another name or remove it first")
	}
	return nil
}
