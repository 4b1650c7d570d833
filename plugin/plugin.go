package plugin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// Main runs the verb that CNI_COMMAND names and returns the exit status. Standard
// output gets the result, the error, or nothing.
func Main(about string) (status int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "ambi: panic: %v\n%s", p, debug.Stack())
			status = fail(conf.Mendf(conf.Errorf(types.ErrInternal, "internal error of ambi: %v", p), "please report it with the stack on standard error"), "")
		}
	}()
	keepWriting()
	keepOwnRights()
	collectLate()
	seen := &input{}
	funcs := skel.CNIFuncs{
		Add:    seen.verb("ADD", (*verbs).add),
		Check:  seen.verb("CHECK", (*verbs).check),
		Del:    seen.verb("DEL", (*verbs).del),
		GC:     seen.verb("GC", (*verbs).gc),
		Status: seen.verb("STATUS", (*verbs).status),
	}
	if err := skel.PluginMainFuncsWithError(funcs, versions{version.All}, about); err != nil {
		return fail(err, seen.cniVersion)
	}
	return 0
}

// keepOwnRights takes from the umask what would keep us from our own files: a record
// that its user cannot open again can never be taken away. Root can open all.
func keepOwnRights() {
	unix.Umask(unix.Umask(0) &^ 0o700)
}

// collectLate has the garbage of a verb collected only when it is much: with a
// thousand ports in the configuration, a fifth of a verb's time would go there.
func collectLate() {
	const much = 64 << 20 // bytes
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(much)
}

// fail prints an error as section 5 of the specification asks, cniVersion
// included, which the library's own error leaves out.
func fail(err *types.Error, cniVersion string) int {
	out, merr := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion,omitempty"`
		*types.Error
	}{cniVersion, err}, "", "    ")
	if merr == nil {
		_, merr = os.Stdout.Write(append(out, '\n'))
	}
	if merr != nil {
		fmt.Fprintln(os.Stderr, "ambi: writing the error to standard output:", merr)
	}
	return 1
}

// versions answers VERSION with the cniVersion it was asked with (section 2,
// "VERSION"), which skel does not read.
type versions struct{ version.PluginInfo }

func (v versions) Encode(w io.Writer) error {
	var asked struct {
		CNIVersion string `json:"cniVersion"`
	}
	_ = json.NewDecoder(os.Stdin).Decode(&asked) // standard input may be empty
	if asked.CNIVersion == "" {
		asked.CNIVersion = version.Current()
	}
	return json.NewEncoder(w).Encode(map[string]any{
		"cniVersion": asked.CNIVersion, "supportedVersions": v.SupportedVersions(),
	})
}

// input keeps the cniVersion that a verb was called with, since an error is printed with
// it (see fail), also when nothing else of the input can be used.
type input struct{ cniVersion string }

// verb makes skel's function of one of ours.
func (in *input) verb(name string, run func(*verbs, context.Context) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) (err error) {
		started := time.Now()
		var versioned struct {
			CNIVersion string `json:"cniVersion"`
		}
		_ = json.Unmarshal(args.StdinData, &versioned) // skel has decoded it before
		in.cniVersion = versioned.CNIVersion
		v, err := newVerbs(name, args)
		defer v.close()
		v.log.begin(name, v.attachment.Key, started, "parse")
		defer func() { v.log.outcome(v.quiet(err)) }()
		if err != nil {
			return err
		}
		ctx, stop := signalContext(name)
		defer stop()
		return coded(run(v, ctx))
	}
}

// verbs is one call of the plugin.
type verbs struct {
	attachment *conf.Attachment
	netConf    *conf.NetConf
	confErr    error // the first fault in the configuration or CNI_ARGS; DEL and GC go on with the rest of them
	override   bool  // CNI_NETNS_OVERRIDE
	stateDirs  []string
	runtimeDir string
	log        *verbLog
}

// newVerbs returns something to log with in any case.
func newVerbs(name string, args *skel.CmdArgs) (*verbs, error) {
	v := &verbs{override: args.NetnsOverride == "1" || strings.EqualFold(args.NetnsOverride, "true")}
	env := conf.Env{
		ContainerID: args.ContainerID, NetnsPath: args.Netns, IfName: args.IfName, Args: args.Args,
		Path: filepath.SplitList(args.Path),
	}
	var argsErr error
	v.netConf, v.confErr = conf.Parse(args.StdinData)
	v.attachment, argsErr = conf.NewAttachment(env, v.netConf)
	v.confErr = cmp.Or(v.confErr, argsErr)
	if name == "ADD" || name == "STATUS" {
		v.confErr = cmp.Or(v.confErr, v.netConf.Misspelt())
	}
	v.runtimeDir = os.Getenv("XDG_RUNTIME_DIR")
	v.stateDirs = record.Dirs(v.netConf.StateDir, v.runtimeDir)
	v.log = openLog(v.netConf)
	if v.confErr != nil && (name == "DEL" || name == "GC") {
		// The record knows what there is to undo; the configuration may have been edited.
		v.log.Warn("a part of the configuration or of CNI_ARGS is not valid and is passed over; ADD says which", "verb", name)
		return v, nil
	}
	return v, v.confErr
}

// quiet is an error without what it quotes of the configuration and of CNI_ARGS,
// where there may be secrets.
func (v *verbs) quiet(err error) error {
	if err == nil || v.confErr == nil || !errors.Is(err, v.confErr) {
		return err
	}
	code := types.ErrInvalidNetworkConfig
	if e, ok := errors.AsType[*types.Error](err); ok {
		code = e.Code
	}
	return conf.Errorf(code, "the configuration or CNI_ARGS is not valid; the runtime was told what is wrong with it")
}

func (v *verbs) close() { v.log.close() }
