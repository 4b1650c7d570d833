package scripted

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

var gateway = net.IPv4(10, 77, 0, 1).To4()

func (p *plugin) attachmentOf(args *skel.CmdArgs) *attachment {
	return &attachment{Network: p.conf.Name, ContainerID: args.ContainerID, IfName: args.IfName, Plugin: p.name, Stdin: args.StdinData}
}

// prepare is what every verb begins with.
func (p *plugin) prepare(args *skel.CmdArgs) (unlock func(), err error) {
	if p.conf, err = parse(args.StdinData); err != nil {
		return nil, err
	}
	if p.broken("strict-args") && strings.Contains(string(args.StdinData), `"args"`) {
		return nil, types.NewError(types.ErrUnsupportedField, "key args", "")
	}
	if err := p.conf.checkPorts(); err != nil && p.verb == "ADD" && !p.isIPAM() && !p.broken("any-port") {
		return nil, err
	}
	return p.lock()
}

// chained says whether the interface is another plugin's.
func (p *plugin) chained(prev *types100.Result) bool {
	return prev != nil && (!strings.HasPrefix(p.name, Name) || p.conf.Script.Chained)
}

func (p *plugin) add(args *skel.CmdArgs) (err error) {
	unlock, err := p.prepare(args)
	if err != nil {
		return err
	}
	defer unlock()
	prev, err := p.conf.prev()
	if p.broken("panic") && len(p.conf.PrevResult) > 0 {
		_ = *prev.IPs[0].Interface
	}
	if err != nil {
		return err
	}
	if p.isIPAM() {
		return p.addAddress(args)
	}
	if err := p.rightNamespace(args.Netns); err != nil {
		return err
	}
	a := p.attachmentOf(args)
	if p.conf.Script.Chained && prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: this plugin is to be chained", "")
	}
	if a.exists() {
		if p.broken("forgets-first") {
			_ = p.remove(a)
		}
		return types.NewError(types.ErrInvalidNetworkConfig, "the attachment exists already", "")
	}
	if !p.chained(prev) {
		if err := p.nameFree(args); err != nil {
			return err
		}
	}
	if err := p.conf.portsFree(); err != nil && !p.broken("steals-port") {
		return err
	}
	if kind := p.conf.IPAM.Type; kind != "" {
		if _, err := p.find(kind); err != nil {
			return err
		}
	}
	result, err := p.attach(args, a, prev)
	if err == nil && p.script().Fail["ADD"] != 0 {
		err = types.NewError(p.script().Fail["ADD"], "scripted failure, late", "")
	}
	if err == nil {
		err = p.printResult(result)
	}
	if err != nil && !p.broken("no-rollback") {
		return p.failed(a, err)
	}
	return err
}

// failed takes back what a failed ADD did.
func (p *plugin) failed(a *attachment, cause error) error {
	if err := p.remove(a); err != nil {
		return fmt.Errorf("%w; and it could not be taken back: %w", cause, err)
	}
	return cause
}

// attach does the work of ADD.
func (p *plugin) attach(args *skel.CmdArgs, a *attachment, prev *types100.Result) (*types100.Result, error) {
	a.Ports = len(p.conf.RuntimeConfig.PortMappings) > 0
	if err := a.save(); err != nil {
		return nil, err
	}
	result := prev
	if !p.chained(prev) {
		made, err := p.makeInterface(args, a)
		if err != nil {
			return nil, err
		}
		if result = made; prev != nil && !p.broken("drops-prev") {
			result = after(prev, made)
		}
	} else if p.broken("drops-prev") {
		result = &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	}
	if a.Ports {
		if err := p.publish(a, result); err != nil {
			return nil, err
		}
	} else if p.broken("always-nft") {
		_ = exec.Command("nft", "list", "tables").Run()
	}
	if p.conf.Script.Helper {
		if err := a.startHelper(); err != nil {
			return nil, err
		}
	}
	return result, a.save()
}

// after is the result of a plugin before this one with ours behind it.
func after(prev, made *types100.Result) *types100.Result {
	joined := *prev
	first := len(prev.Interfaces)
	joined.Interfaces = append(slices.Clone(prev.Interfaces), made.Interfaces...)
	for _, ip := range made.IPs {
		moved := *ip
		index := *ip.Interface + first
		moved.Interface = &index
		joined.IPs = append(joined.IPs, &moved)
	}
	joined.Routes = append(slices.Clone(prev.Routes), made.Routes...)
	return &joined
}

func (p *plugin) printResult(result *types100.Result) error {
	v := p.conf.version()
	if p.broken("wrong-version") {
		v = "1.0.0"
	}
	if p.script().NoVersion {
		converted, err := result.GetAsVersion(v)
		if err != nil {
			return err
		}
		return printWithoutVersion(converted)
	}
	return types.PrintResult(result, v)
}

// addAddress is ADD of an IPAM plugin.
func (p *plugin) addAddress(args *skel.CmdArgs) error {
	a := p.attachmentOf(args)
	address, err := p.allocate(a)
	if err != nil {
		return err
	}
	if code := p.script().Fail["ADD"]; code != 0 {
		return errors.Join(a.release(), types.NewError(code, "scripted failure, late", ""))
	}
	return p.printResult(&types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		IPs:        []*types100.IPConfig{{Address: ipNet(address), Gateway: gateway}},
		Routes:     append([]*types.Route{defaultRoute()}, p.script().Routes...),
	})
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func defaultRoute() *types.Route {
	return &types.Route{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, GW: gateway}
}

// del is DEL.
func (p *plugin) del(args *skel.CmdArgs) error {
	signal.Ignore(unix.SIGTERM)
	unlock, err := p.prepare(args)
	if err != nil {
		return err
	}
	defer unlock()
	a := p.attachmentOf(args)
	if p.isIPAM() {
		return a.release()
	}
	if p.broken("del-once") && !a.exists() {
		return types.NewError(types.ErrUnknownContainer, "no such attachment", "")
	}
	if _, err := os.Stat(args.Netns); err != nil && p.broken("needs-netns") {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: "+err.Error(), "")
	}
	if p.broken("trusts-path") {
		_ = deleteInside(args.Netns, args.IfName)
	}
	if p.broken("talks") {
		fmt.Println("{}")
	}
	return p.remove(a)
}

// remove undoes an attachment, whatever is left of it.
func (p *plugin) remove(a *attachment) error {
	stdin := a.Stdin
	known := a.load()
	var errs []error
	if known && a.Ports || !known && p.conf.Script.Helper || !known && p.leftTable(a) {
		if !p.broken("trusts-stdin") || len(p.conf.RuntimeConfig.PortMappings) > 0 {
			errs = append(errs, a.unpublish())
		}
	}
	errs = append(errs, p.endHelpers(a, known), deleteHostLink(a.hostLink()))
	if !p.broken("leaks-address") {
		errs = append(errs, a.release())
	}
	if known && !p.broken("trusts-stdin") {
		stdin = a.Stdin
	}
	errs = append(errs, p.delegateDel(a, stdin))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	err := os.Remove(a.file())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}

func (p *plugin) leftTable(a *attachment) bool {
	return exec.Command("nft", "list", "table", "ip", a.table()).Run() == nil
}

// check is CHECK.
func (p *plugin) check(args *skel.CmdArgs) error {
	unlock, err := p.prepare(args)
	if err != nil {
		return err
	}
	defer unlock()
	prev, err := p.conf.prev()
	if p.broken("panic") && len(p.conf.PrevResult) > 0 {
		_ = *prev.IPs[0].Interface
	}
	if err != nil {
		return err
	}
	if p.isIPAM() || p.broken("checks-nothing") {
		return nil
	}
	if prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "")
	}
	if p.broken("talks") {
		fmt.Println("{}")
	}
	if p.broken("check-repairs") {
		_ = os.WriteFile(folder+"/checked", nil, 0o600)
	}
	a := p.attachmentOf(args)
	if !a.load() {
		return types.NewError(types.ErrUnknownContainer, "no such attachment", "")
	}
	if !p.chained(prev) || p.madeIt(prev, a) {
		if err := p.checkInterface(args, a, prev); err != nil {
			return err
		}
	}
	if a.Ports && !p.leftTable(a) {
		return types.NewError(100, "the published ports are gone", "")
	}
	if err := p.checkHelpers(a); err != nil {
		return err
	}
	return p.delegateTo("CHECK", args.StdinData, "0.4.0")
}

// madeIt says whether the interface of a result is one of ours.
func (p *plugin) madeIt(prev *types100.Result, a *attachment) bool {
	return slices.ContainsFunc(prev.Interfaces, func(i *types100.Interface) bool { return i.Name == a.hostLink() })
}

func (p *plugin) checkHelpers(a *attachment) error {
	if !p.conf.Script.Helper {
		return nil
	}
	if len(a.helpers()) == 0 {
		return types.NewError(100, "the process that the attachment needs is dead", "")
	}
	for _, pid := range a.helpers() {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if strings.Contains(string(stat), ") T ") {
			return types.NewError(types.ErrTryAgainLater, "the process that the attachment needs is stopped", "")
		}
	}
	return nil
}

// gc is GC.
func (p *plugin) gc(args *skel.CmdArgs) error {
	unlock, err := p.prepare(args)
	if err != nil {
		return err
	}
	defer unlock()
	valid := p.conf.Valid
	if valid == nil && !p.broken("new-key-only") {
		valid = p.conf.OldValid
	}
	if valid == nil && p.broken("gc-without-list") {
		valid = &[]types.GCAttachment{}
	}
	if valid == nil || p.isIPAM() || p.broken("gc-nothing") {
		return nil
	}
	network := p.conf.Name
	if p.broken("gc-any-network") {
		network = ""
	}
	found, err := all(network)
	errs := []error{err}
	for _, a := range found {
		if a.Plugin == p.name && !p.isValid(*valid, a) {
			errs = append(errs, p.remove(a))
		}
	}
	if p.broken("talks") {
		fmt.Println("{}")
	}
	if !p.broken("gc-alone") {
		errs = append(errs, p.delegateTo("GC", args.StdinData, "1.1.0"))
	}
	return errors.Join(errs...)
}

func (p *plugin) isValid(valid []types.GCAttachment, a *attachment) bool {
	return slices.ContainsFunc(valid, func(v types.GCAttachment) bool {
		return v.ContainerID == a.ContainerID && (v.IfName == a.IfName || p.broken("gc-by-id"))
	})
}

// status is STATUS.
func (p *plugin) status(args *skel.CmdArgs) error {
	unlock, err := p.prepare(args)
	if err != nil {
		return err
	}
	defer unlock()
	if p.broken("talks") {
		fmt.Println("{}")
	}
	if p.isIPAM() || p.broken("always-ready") {
		return nil
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return types.NewError(50, "nft is missing: install nftables", "")
	}
	return p.delegateTo("STATUS", args.StdinData, "1.1.0")
}

// publish makes a table of nftables that is the attachment's own.
func (p *plugin) publish(a *attachment, result *types100.Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "table ip %s {\n", a.table())
	for _, chain := range []string{"prerouting", "output"} {
		fmt.Fprintf(&b, "chain %s {\ntype nat hook %s priority -100;\n", chain, chain)
		for _, m := range p.conf.RuntimeConfig.PortMappings {
			for _, ip := range result.IPs {
				where := "fib daddr type local"
				if m.HostIP != "" && !p.broken("any-host-ip") {
					where = "ip daddr " + m.HostIP
				}
				fmt.Fprintf(&b, "%s %s dport %d dnat to %s:%d\n", where, m.Protocol, m.HostPort, ip.Address.IP, m.ContainerPort)
			}
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n")
	return nft(b.String())
}

func (a *attachment) unpublish() error {
	// Made first, so that its absence is no error.
	return nft(fmt.Sprintf("table ip %s\ndelete table ip %s\n", a.table(), a.table()))
}

func nft(text string) error {
	cmd := exec.Command("nft", "-f", "-")
	// A plugin that is killed makes no table after the DEL that follows.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// startHelper leaves a process that has the attachment's name.
func (a *attachment) startHelper() error {
	path, err := exec.LookPath("sleep")
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: path, Args: []string{a.table(), "infinity"}, Dir: "/", SysProcAttr: &unix.SysProcAttr{Setsid: true}}
	if err := cmd.Start(); err != nil {
		return err
	}
	a.Helper = cmd.Process.Pid
	return cmd.Process.Release()
}

func (p *plugin) endHelpers(a *attachment, known bool) error {
	pids := a.helpers()
	if p.broken("trusts-pid") && known && a.Helper != 0 {
		pids = []int{a.Helper}
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for len(a.helpers()) > 0 {
		select {
		case <-ctx.Done():
			return errors.New("a process of the attachment does not end")
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}
