package delegate

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
)

// Chain runs the delegates of one attachment. The first one makes the interface
// and has the IPAM plugin; the others follow it.
//
// Contexts are for time-outs only: a delegate whose context ends is killed.
type Chain struct {
	Delegates  []conf.Delegate
	Attachment *conf.Attachment

	// NetnsGone says that Attachment.NetnsPath is not the container's namespace
	// any more: DEL then works in a stand-in namespace. A path that is empty, is
	// missing, or is no namespace is noticed without it.
	NetnsGone bool
	// NetnsKnown says that it is, for sure. Else DEL makes sure that the interface
	// it finds there is not another container's.
	NetnsKnown bool
	// NetnsInode is the number of the container's namespace, by which DEL finds it
	// when its path leads elsewhere, and without which ADD would not notice that it
	// does; zero when it is not known.
	NetnsInode uint64

	stray *os.File // the namespace to undo an ADD in that did not work in the container's; nil: the container's

	Logger  *slog.Logger  // nil: silent
	Stderr  io.Writer     // of the delegates; nil: our standard error
	Timeout time.Duration // of one delegate's run; zero: none

	// Inherit is a file that every delegate, and whatever it starts, has open while
	// it runs: a lock on it tells when the last of them has ended. It may be nil.
	Inherit *os.File

	// CacheDir is the folder, made when needed, in which the versions that a
	// binary speaks are remembered; empty: nowhere.
	CacheDir string

	DisableCheck bool // CHECK does nothing (key disableCheck of a wrapped conflist)
	DisableGC    bool // GC does nothing (key disableGC)

	// AfterEach is called during Add with the number of each delegate that
	// succeeded and its result, so that a later DEL has an address to work with
	// even when Add is killed. Its error fails the ADD. It may be nil.
	AfterEach func(delegate int, result *types100.Result) error
}

func (c *Chain) log() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

func (c *Chain) runner() *runner {
	stderr := c.Stderr
	if stderr == nil {
		stderr = os.Stderr
	}
	return &runner{stderr: stderr, timeout: c.Timeout, inherit: c.Inherit}
}

// Find looks for every delegate's binary. Its error, code 50 ("cannot service
// ADD requests"), names each type that is missing, where it was looked for, and
// what mends it.
func (c *Chain) Find() error {
	var errs []*types.Error
	for _, d := range c.Delegates {
		if _, err := c.find(d.Type); err != nil {
			errs = append(errs, annotate(d.Type, err))
		}
	}
	return join(errs)
}

func (c *Chain) find(plugin string) (string, error) {
	path, err := c.runner().FindInPath(plugin, c.Attachment.Path)
	if err == nil {
		return path, nil
	}
	return "", conf.Errorf(conf.ErrPluginNotAvailable,
		"no plugin %q in CNI_PATH %q: install it there (Debian: package containernetworking-plugins, in /usr/lib/cni), add its folder to CNI_PATH, or change the key \"delegates\"",
		plugin, strings.Join(c.Attachment.Path, string(os.PathListSeparator)))
}

// absolute keeps the absolute folders of CNI_PATH.
func absolute(paths []string) []string {
	var kept []string
	for _, p := range paths {
		if filepath.IsAbs(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// request is one verb for one delegate.
type request struct {
	verb  string
	netns string               // CNI_NETNS
	prev  *types100.Result     // prevResult; nil: none
	valid []types.GCAttachment // of GC only
}

// attached says whether the verb concerns one attachment.
func (r request) attached() bool { return r.verb != "STATUS" && r.verb != "GC" }

// call runs one delegate in the newest version that it and the network have in
// common, and returns what it printed and that version. It is not called at all,
// with both empty, when that version is older than least.
//
// A plugin refuses a version it does not speak with code 1 before it does
// anything (specification section 2, "VERSION"; skel sees to it), so a plugin
// whose versions are not known is simply asked in ours: the question, a process
// of its own, is needed only by plugins older than the network.
func (c *Chain) call(ctx context.Context, d conf.Delegate, r request, least string) (out []byte, v string, err error) {
	path, err := c.find(d.Type)
	if err != nil {
		return nil, "", err
	}
	known := c.remembered(path)
	if known == nil && !r.attached() {
		// These verbs are new, and older plugins answer them with anything.
		if known, err = c.probe(ctx, path); err != nil {
			return nil, "", err
		}
	}
	out, v, err = c.callIn(ctx, d, r, path, known, least)
	if !conf.HasCode(err, types.ErrIncompatibleCNIVersion) || !r.attached() {
		return out, v, err
	}
	asked, probeErr := c.probe(ctx, path)
	if probeErr != nil || nearest(asked, c.ours()) == v {
		return out, v, err // code 1 came from somewhere else, such as its IPAM plugin
	}
	return c.callIn(ctx, d, r, path, asked, least)
}

// callIn is call with the versions that the binary speaks, nil when they are not
// known.
func (c *Chain) callIn(ctx context.Context, d conf.Delegate, r request, path string, known []string, least string) ([]byte, string, error) {
	v := c.ours()
	if known != nil {
		if v = nearest(known, c.ours()); v == "" {
			return nil, "", incompatible(path, known)
		}
	}
	if !atLeast(v, least) {
		return nil, "", nil
	}
	stdin, err := c.stdin(d, r, v)
	if err != nil {
		return nil, v, conf.Errorf(types.ErrInvalidNetworkConfig, "configuration: %v", err)
	}
	started := time.Now()
	out, err := c.runner().ExecPlugin(ctx, path, stdin, environ(r.verb, c.Attachment, r.netns, r.attached()))
	c.log().Debug("delegate", "type", d.Type, "path", path, "verb", r.verb, "cniVersion", v, "netns", r.netns,
		"duration", time.Since(started).Round(time.Microsecond), "ok", err == nil)
	return out, v, err
}

// Check runs CHECK of every delegate with the final result of ADD and returns
// the first error. Delegates of before 0.4.0 have no CHECK and are passed over.
func (c *Chain) Check(ctx context.Context, result *types100.Result) error {
	if c.DisableCheck {
		return nil
	}
	for _, d := range c.Delegates {
		if _, _, err := c.call(ctx, d, request{verb: "CHECK", netns: c.Attachment.NetnsPath, prev: result}, "0.4.0"); err != nil {
			return annotate(d.Type, err)
		}
	}
	return nil
}

// Status finds every binary and runs STATUS of the delegates that have it, which
// came with 1.1.0, and returns the first error.
func (c *Chain) Status(ctx context.Context) error {
	if err := c.Find(); err != nil {
		return err
	}
	for _, d := range c.Delegates {
		if _, _, err := c.call(ctx, d, request{verb: "STATUS"}, "1.1.0"); err != nil {
			return annotate(d.Type, err)
		}
	}
	return nil
}

// GC runs GC of the delegates that have it, which came with 1.1.0, with the
// attachments that are still valid; nil and empty both mean that none is. It goes
// on past errors and returns all of them. For the other delegates the caller replays DEL of what is not valid.
// kept are attachments that are not valid and whose addresses are not to be let go all
// the same, since taking them down has failed.
func (c *Chain) GC(ctx context.Context, valid, kept []types.GCAttachment) error {
	if c.DisableGC {
		return nil
	}
	if valid == nil {
		valid = []types.GCAttachment{}
	}
	var errs []*types.Error
	for _, d := range c.Delegates {
		if _, _, err := c.call(ctx, d, request{verb: "GC", valid: valid}, "1.1.0"); err != nil {
			errs = append(errs, annotate(d.Type, err))
		}
		c.gcHostLocal(ctx, d, slices.Concat(valid, kept))
	}
	return join(errs)
}

// gcHostLocal runs GC of a delegate's host-local, which the plugins that use it do not
// pass on (bridge of plugins 1.10.0 among them); a second one finds nothing. It frees what
// has no owner that DEL could name: files of a host-local that knew no interface names. No other IPAM plugin
// is called: one whose pool many hosts share would take theirs for stale. It is an
// extra, and without the runtimeConfig that ADD had it may not understand its
// configuration, so a failure is only logged.
func (c *Chain) gcHostLocal(ctx context.Context, d conf.Delegate, valid []types.GCAttachment) {
	dir := storeOf(d, c.Attachment.NetConf.Name)
	if dir == "" || len(storedIn(dir)) == 0 {
		return
	}
	if _, _, err := c.call(ctx, ipamOf(d, hostLocal), request{verb: "GC", valid: valid}, "1.1.0"); err != nil {
		c.log().Warn("GC of the addresses", "type", hostLocal, "delegate", d.Type, "error", err)
	}
}
