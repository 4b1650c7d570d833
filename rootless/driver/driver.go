package driver

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
	way "github.com/ambi-cni/ambi/rootless/relay"
)

// Driver is one kind of driver.
type Driver interface {
	// Name is the program's, and Package the distributions' package that has it.
	Name() string
	Package() string

	// Find looks for the program, at the configured path when that is set, and learns
	// what it can do, from the cache in cacheDir when that is about the same file. Its
	// errors have code 50 and say what to install.
	Find(configured, cacheDir string) (Program, error)

	// Inspect does the same for people, without a cache, and changes nothing. The path of
	// a program that is there and cannot be used comes with the error.
	Inspect(configured string) (*Info, error)

	// CheckHost says, with code 50 and the remedy, what else of the host the driver lacks.
	CheckHost() error

	// Publishes says whether that port handler is the driver itself.
	Publishes(conf.PortHandler) bool

	// Publishable is the part of a mapping that the driver can publish itself; code 2
	// when there is none.
	Publishable(conf.PortMapping) (conf.PortMapping, error)

	start(*Command, Files, *slog.Logger) (Process, error)
	adopt(*Command, Survivor, Files, *slog.Logger) (Process, error)
	ofHost(*Command) string // what one that is started now has of the host for good
	move(*Command, netip.Prefix)
	publisher(c *Command, container netip.Addr) Publisher
}

// Program is a driver that was found, with what it can do.
type Program interface {
	// Command is how to start it for this configuration. What was on by default and the
	// program does not have is left out; what was asked for and is missing is an error of
	// code 2.
	Command(r conf.Rootless, ifName string) (*Command, error)

	// Plan is the container's interface, with the addresses that this program gives or the
	// container asked for. Errors have code 2 or 7 and name the key or the address.
	Plan(*conf.Attachment) (*plan.Interface, error)
}

// Publisher publishes ports by the driver itself.
type Publisher interface {
	Add(conf.PortMapping) error
	Remove(conf.PortMapping) error  // one that is not published is success
	Check([]conf.PortMapping) error // which of them are not published
}

// Process is a running driver.
type Process interface {
	// AwaitReady returns when the interface is there and the host's loopback is closed to
	// the container. The error of a driver that died has its last words. It is to be called
	// once.
	AwaitReady() error
	PID() int
	Ended() <-chan struct{} // closed when it has ended
	Ending() string         // how it ended and its last words; call it after that
	Dismiss()               // tells it to leave
	Stop()                  // tells it to leave and returns when it is gone
	// Survivor is what keeps it alive when this process ends, as long as somebody has it; nil:
	// nothing does. The files are the Process's.
	Survivor() *Survivor
}

// Survivor is a driver that lives on without who has started it.
type Survivor struct {
	PID   int // 0: it is no process
	Files []*os.File
}

// Follower is a Process that follows the host by itself, and need not be started again.
type Follower interface {
	// Follow has it take what OfHost is about anew.
	Follow(*Command) error
}

// Counter is a Process that counts what leaves by it.
type Counter interface {
	Stats() []MemberStats
	Forget(addresses []netip.Addr) // who gets them next begins anew
}

// Drainer is a Process with connections of its own, which can come to their end while another
// process goes on with the rest.
type Drainer interface {
	Drain()
	Connections() int
}

// MemberStats are the counters of one address of a container.
type MemberStats = way.MemberStats

// Counts says that the driver is a Counter.
func (c *Command) Counts() bool { return c.Driver == relay{}.Name() }

// Hides says that the driver keeps others from looking into it when it runs, so that borrowing its
// tap takes CAP_SYS_PTRACE (ptrace(2), "Ptrace access mode checking").
func (c *Command) Hides() bool { return c.Driver == pasta{}.Name() }

// Info is what people are told of a driver's program.
type Info struct {
	Path    string
	Version string   // empty when it says nothing
	Lacks   []string // options that ambi would use and it does not have
	Warning string   // what is wrong with it; empty when nothing is known
}

// Command is a driver as it is started, the first time and again. It goes to the
// supervisor as JSON.
type Command struct {
	Driver string   `json:"driver"` // its Name
	Path   string   `json:"path"`
	Args   []string `json:"args"`
	IfName string   `json:"ifName"`
	// Outbound4 and 6 are what connections go out from: an address, an interface of the
	// host that has one, or nothing.
	Outbound4 string `json:"outbound4,omitempty"`
	Outbound6 string `json:"outbound6,omitempty"`
	Warning   string `json:"warning,omitempty"` // as Info has it
	// APISocket is where it takes requests to publish ports; empty when it is asked for
	// none.
	APISocket string `json:"apiSocket,omitempty"`
}

// Files are what a driver gets of the process that starts it.
type Files struct {
	Netns *os.File // the container's network namespace
	Alive *os.File // inherited, so that its lock lives as long as the last of us
	// Helper is the command line that makes of this binary what HelperMain is about.
	Helper []string
	// Most is how many files it may have open (RLIMIT_NOFILE), a socket for each flow among
	// them: what it takes in memory, and in time for each packet, grows with them. What
	// would be one more it refuses.
	Most uint64
}

// Start starts the driver. It is of use when AwaitReady has returned, which gives work
// a place that needs neither.
func (c *Command) Start(files Files, log *slog.Logger) (Process, error) {
	return Of(c.Driver).start(c, files, log)
}

// Adopt goes on with a driver that another process has started, whose files it takes over: it is
// ready. An error says that it has ended, or that nobody can go on with it.
func (c *Command) Adopt(survivor Survivor, files Files, log *slog.Logger) (Process, error) {
	return Of(c.Driver).adopt(c, survivor, files, log)
}

// Move has the driver give addresses of another network from its next start on.
func (c *Command) Move(network netip.Prefix) { Of(c.Driver).move(c, network) }

// Publisher publishes ports to an address of the container by the driver itself; nil when
// the driver was not asked to.
func (c *Command) Publisher(container netip.Addr) Publisher {
	if c.APISocket == "" {
		return nil
	}
	return Of(c.Driver).publisher(c, container)
}

// Known are all drivers, in the order in which "auto" looks for them.
func Known() []Driver { return []Driver{slirp4netns{}, relay{}, pasta{}} }

// Of is the driver that the key rootless.driver names, or the first when it names none
// ("auto").
func Of(name string) Driver {
	known := Known()
	for _, d := range known {
		if d.Name() == name {
			return d
		}
	}
	return known[0]
}

// Choose finds the driver for a configuration: the one that it names, or the first that
// this host has all for. An error, of code 50, says of each why it cannot be.
func Choose(r conf.Rootless, cacheDir string) (Driver, Program, error) {
	var errs []error
	candidates := Candidates(r)
	for _, d := range candidates {
		program, err := d.Find(r.Path, cacheDir)
		if err == nil {
			err = d.CheckHost()
		}
		if err == nil {
			return d, program, nil
		}
		errs = append(errs, err)
	}
	return nil, nil, noneOf(errs)
}

// Candidates are the drivers that may be meant, best first.
func Candidates(r conf.Rootless) []Driver {
	switch {
	case r.Driver != conf.DriverAuto:
		return []Driver{Of(r.Driver)}
	case r.PortHandler == conf.HandlerSlirp4netns:
		return []Driver{slirp4netns{}}
	case r.Path == "":
		return Known()
	case strings.Contains(filepath.Base(r.Path), pasta{}.Name()):
		return []Driver{pasta{}}
	}
	return []Driver{slirp4netns{}}
}

// noneOf is the error of a host for which no driver is good.
func noneOf(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	var texts, remedies []string
	for _, err := range errs {
		texts = append(texts, conf.Message(err))
		if e, ok := errors.AsType[*types.Error](err); ok && !slices.Contains(remedies, e.Details) {
			remedies = append(remedies, e.Details)
		}
	}
	return conf.Mendf(conf.Errorf(conf.ErrPluginNotAvailable, "no driver can be used: %s", strings.Join(texts, "; ")), "%s", strings.Join(remedies, "; or "))
}

// usualFolders are looked into after PATH, which runtimes often leave empty.
var usualFolders = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin"}

// LookUp finds a program of the host, in PATH or where they usually are; empty without.
func LookUp(program string) string {
	if path, err := exec.LookPath(program); err == nil && filepath.IsAbs(path) {
		return path
	}
	for _, folder := range usualFolders {
		path := filepath.Join(folder, program)
		if unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return ""
}

// LastLines is the end of a program's output in one line.
func LastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, " | ")
}
