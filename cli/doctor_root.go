package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
)

func (d *doctor) lookAtFirewall(context.Context) {
	const nftName, iptName = "nftables", "iptables"
	_, iptErr := nat.Open(conf.BackendIPTables)
	if d.mode != conf.ModeRoot {
		d.pass(nftName, "not needed without root")
		return
	}
	_, nftErr := nat.Open(conf.BackendNFTables)
	switch {
	case !d.able:
		d.note(check{Name: nftName, Status: warn, Seen: "cannot be looked at without root"})
		return
	case nftErr == nil:
		d.pass(nftName, "the kernel answers; ambi publishes ports with it")
	case iptErr == nil:
		d.note(check{Name: nftName, Status: warn, Seen: conf.Message(nftErr) + "; ambi publishes ports with iptables, which takes longer", Mend: "modprobe nf_tables", AsRoot: true})
	default:
		d.note(check{Name: nftName, Status: fail, Seen: conf.Message(nftErr) + ", so no ports can be published", Mend: "modprobe nf_tables", AsRoot: true})
	}
	if iptErr == nil {
		d.pass(iptName, "works; needed by other plugins, and where nftables is missing")
		return
	}
	d.note(check{Name: iptName, Status: warn, Seen: conf.Message(iptErr) + "; CNI plugins such as bridge (ipMasq) and firewall call it", Mend: installing("iptables"), AsRoot: true})
}

// delegateNeed is a plugin and what it is needed for.
type delegateNeed struct {
	name     string
	optional bool
}

// lookAtDelegates looks for the plugins that most conflists name. What the conflists of
// this host name is looked at with them.
func (d *doctor) lookAtDelegates(ctx context.Context) {
	var found, missing, broken []string
	mend := ""
	for _, need := range []delegateNeed{{"bridge", false}, {"host-local", false}, {"firewall", true}} {
		path := findPlugin(need.name)
		if path == "" {
			if !need.optional {
				missing = append(missing, need.name)
				mend = pluginMend(need.name)
			}
			continue
		}
		versions, err := pluginVersions(ctx, path)
		if err != nil {
			broken = append(broken, fmt.Sprintf("%s: %v", path, err))
			continue
		}
		found = append(found, fmt.Sprintf("%s (CNI up to %s)", path, versions[len(versions)-1]))
	}
	const name = "CNI plugins"
	switch {
	case len(missing) > 0:
		d.forMode(conf.ModeRoot, check{
			Name: name, Status: warn, Mend: mend, AsRoot: !strings.HasPrefix(mend, "export "),
			Seen: fmt.Sprintf("no %s in %s, which most conflists with delegates need; the built-in network needs none", strings.Join(missing, ", "), cniPath()),
		})
	case len(broken) > 0:
		d.forMode(conf.ModeRoot, check{Name: name, Status: fail, Seen: strings.Join(broken, "; "), Mend: reinstall(), AsRoot: true})
	default:
		d.pass(name, "%s", strings.Join(found, ", "))
	}
}

func findPlugin(name string) string {
	for _, folder := range filepath.SplitList(cniPath()) {
		if !filepath.IsAbs(folder) {
			continue // would depend on where the runtime stands
		}
		if st, err := os.Stat(filepath.Join(folder, name)); err == nil && st.Mode().IsRegular() {
			return filepath.Join(folder, name)
		}
	}
	return ""
}

const pluginPackage = "containernetworking-plugins"

// standardPlugins are in the package containernetworking-plugins.
var standardPlugins = []string{
	"bandwidth", "bridge", "dhcp", "dummy", "firewall", "host-device", "host-local", "ipvlan", "loopback", "macvlan", "portmap", "ptp", "sbr",
	"static", "tap", "tuning", "vlan", "vrf",
}

// pluginMend makes a plugin that CNI_PATH does not have be found: it may lie in
// another of the usual folders, or in a package. Empty for one that we do not know.
func pluginMend(name string) string {
	for _, folder := range usualCNIPath {
		if _, err := os.Stat(filepath.Join(folder, name)); err == nil && os.Getenv("CNI_PATH") != "" {
			return fmt.Sprintf("export CNI_PATH=%s", quoted(os.Getenv("CNI_PATH")+":"+folder))
		}
	}
	if slices.Contains(standardPlugins, name) {
		return installing(pluginPackage)
	}
	return ""
}

func reinstall() string {
	return strings.Replace(installing(pluginPackage), "install -y", "install -y --reinstall", 1)
}

// pluginVersions asks a plugin for the versions of CNI that it speaks, which is its
// verb VERSION.
func pluginVersions(ctx context.Context, path string) ([]string, error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	info, err := invoke.GetVersionInfo(ctx, path, &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: &bytes.Buffer{}}})
	if err != nil {
		return nil, err
	}
	versions := info.SupportedVersions()
	if len(versions) == 0 {
		return nil, fmt.Errorf("it speaks no version of CNI")
	}
	return versions, nil
}

// lookAtSelf looks for ambi where runtimes look for plugins.
func (d *doctor) lookAtSelf(context.Context) {
	const name = "ambi"
	installed, ours := findPlugin("ambi"), self()
	folders := filepath.SplitList(cniPath())
	folder := folders[0]
	if i := slices.IndexFunc(folders, isFolder); i >= 0 {
		folder = folders[i]
	}
	mend := fmt.Sprintf("install -D -m 0755 %s %s", quoted(ours), quoted(filepath.Join(folder, "ambi")))
	if installed == "" {
		d.note(check{Name: name, Status: warn, Seen: "not in " + cniPath() + ", where runtimes look for plugins", Mend: mend, AsRoot: true})
		return
	}
	if same, err := sameContent(installed, ours); err == nil && !same {
		d.note(check{
			Name: name, Status: warn, Seen: fmt.Sprintf("%s is another build than this one, %s", installed, ours),
			Mend: fmt.Sprintf("install -m 0755 %s %s", quoted(ours), quoted(installed)), AsRoot: true,
		})
		return
	}
	d.pass(name, "%s, version %s", installed, d.app.program.Version)
}

func isFolder(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func sameContent(a, b string) (bool, error) {
	left, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	right, err := os.Stat(b)
	if err != nil || os.SameFile(left, right) {
		return err == nil, err
	}
	if left.Size() != right.Size() {
		return false, nil
	}
	x, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	y, err := os.ReadFile(b)
	return bytes.Equal(x, y), err
}
