package scripted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// verbArgs is our own environment with another verb (specification section 4); for a
// DEL that GC makes, with the attachment's parameters.
type verbArgs struct {
	verb       string
	bare       bool
	attachment *attachment
}

func (v verbArgs) AsEnv() []string {
	var env []string
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "CNI_COMMAND=") && (!v.bare || strings.HasPrefix(pair, "CNI_") || strings.HasPrefix(pair, "PATH=")) {
			env = append(env, pair)
		}
	}
	if v.attachment != nil {
		env = append(env, "CNI_CONTAINERID="+v.attachment.ContainerID, "CNI_IFNAME="+v.attachment.IfName)
	}
	return append(env, "CNI_COMMAND="+v.verb)
}

func (p *plugin) args(verb string) verbArgs { return verbArgs{verb: verb, bare: p.broken("bare-env")} }

func (p *plugin) exec() invoke.Exec {
	var stderr io.Writer = os.Stderr
	if p.broken("quiet-delegate") {
		stderr = io.Discard
	}
	return &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: stderr}}
}

// find looks for the IPAM plugin; only absolute folders count.
func (p *plugin) find(kind string) (string, error) {
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("CNI_PATH")) {
		if p.broken("current-folder") && !filepath.IsAbs(dir) {
			dir, _ = filepath.Abs(dir)
		}
		if filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	if p.broken("last-folder") {
		slices.Reverse(dirs)
	}
	path, err := invoke.FindInPath(kind, dirs)
	if err != nil {
		return "", types.NewError(50, fmt.Sprintf("the IPAM plugin %q is missing: %v", kind, err), "")
	}
	return path, nil
}

// passed is the configuration as the IPAM plugin gets it: as it came.
func (p *plugin) passed(stdin []byte) []byte {
	if !p.broken("float64") {
		return stdin
	}
	var v any
	if json.Unmarshal(stdin, &v) != nil {
		return stdin
	}
	again, err := json.Marshal(v)
	if err != nil {
		return stdin
	}
	return again
}

// address is what the interface gets: of the IPAM plugin, or of our own.
func (p *plugin) address(args *skel.CmdArgs, a *attachment) (*types100.Result, error) {
	kind := p.conf.IPAM.Type
	if kind == "" {
		address, err := p.allocate(a)
		return &types100.Result{
			IPs:    []*types100.IPConfig{{Address: ipNet(address), Gateway: gateway}},
			Routes: append([]*types.Route{defaultRoute()}, p.conf.Script.Routes...),
		}, err
	}
	path, err := p.find(kind)
	if err != nil {
		return nil, err
	}
	var result types.Result
	err = patiently(func() (err error) {
		result, err = invoke.ExecPluginWithResult(context.Background(), path, p.passed(args.StdinData), p.args("ADD"), p.exec())
		return err
	})
	if p.broken("trusts-output") && (err != nil && !errors.As(err, new(*types.Error)) || result == nil) {
		return &types100.Result{}, nil
	}
	if err != nil {
		return nil, err
	}
	addressed, err := types100.NewResultFromResult(result)
	if err == nil && len(addressed.IPs) == 0 && !p.broken("trusts-output") {
		err = types.NewError(types.ErrDecodingFailure, "the IPAM plugin gave no address", "")
	}
	return addressed, err
}

// patiently tries again while a binary is being written (ETXTBSY). The library means
// to, and starts the same exec.Cmd again, which cannot be.
func patiently(run func() error) error {
	for try := 0; ; try++ {
		err := run()
		busy := err != nil && (errors.Is(err, unix.ETXTBSY) || strings.Contains(err.Error(), "already started"))
		if !busy || try == 500 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// delegateTo calls the IPAM plugin, if there is one that knows the verb.
func (p *plugin) delegateTo(verb string, stdin []byte, since string) error {
	kind := p.conf.IPAM.Type
	if kind == "" || p.isIPAM() {
		return nil
	}
	path, err := p.find(kind)
	if err != nil {
		return err
	}
	info, err := invoke.GetVersionInfo(context.Background(), path, p.exec())
	if err != nil {
		return err
	}
	knows := slices.ContainsFunc(info.SupportedVersions(), func(v string) bool {
		since, err := version.GreaterThanOrEqualTo(v, since)
		return err == nil && since
	})
	if !knows {
		return nil
	}
	return invoke.ExecPluginWithoutResult(context.Background(), path, p.passed(stdin), p.args(verb), p.exec())
}

// delegateDel has the IPAM plugin release the address.
func (p *plugin) delegateDel(a *attachment, stdin []byte) error {
	conf, err := parse(stdin)
	if err != nil || conf.IPAM.Type == "" {
		return nil
	}
	path, err := p.find(conf.IPAM.Type)
	if err != nil {
		return err
	}
	// As it came with this call, prevResult included, when it has the IPAM plugin.
	if now, err := parse(p.stdin); err == nil && now.IPAM.Type == conf.IPAM.Type {
		stdin = p.stdin
	}
	args := p.args("DEL")
	args.attachment = a
	return invoke.ExecPluginWithoutResult(context.Background(), path, p.passed(stdin), args, p.exec())
}
