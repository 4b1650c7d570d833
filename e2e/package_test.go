package e2e

import (
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// debVariable names the deb that TestPackage is about.
const debVariable = "AMBI_TEST_DEB"

// TestPackage installs the deb, uses what it brought, as root and as a user, removes
// it, and compares the machine before and after, down to every file of the root file
// system: that one is a layer above the host's own, which never sees any of it.
func TestPackage(t *testing.T) {
	deb := os.Getenv(debVariable)
	if deb == "" {
		t.Skip(debVariable + " is not set; make dist-test builds the deb and sets it")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	var out strings.Builder
	cmd := inMachine("^TestPackageInside$", "AMBI_E2E_DEB="+deb)
	cmd.Stdout = io.MultiWriter(&out, os.Stdout) // as it goes: of a step that hangs one sees which
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Run())
	require.Contains(t, out.String(), "machine unchanged")
}

// What the host's own plugins leave behind without ambi is no matter of this test, so
// they run once before it begins: the firewall plugin keeps its empty chains.
const withoutAmbi = `
export CNI_PATH=/usr/lib/cni NETCONFPATH=/tmp/plain
mkdir -p $NETCONFPATH
cat >$NETCONFPATH/plain.conflist <<END
{"cniVersion": "1.0.0", "name": "plain", "plugins": [
  {"type": "bridge", "bridge": "plain", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": "/tmp/plain/ipam"}},
  {"type": "firewall"}]}
END
ip netns add plain
cnitool add plain /run/netns/plain >/dev/null
cnitool del plain /run/netns/plain
ip netns del plain
ip link del plain
rm -r /tmp/plain`

// The package's life. "ambi" is found in PATH, the plugin where Debian's engines look,
// the network in the package's examples.
const lifeOfPackage = `
dpkg -i "$DEB"
command -v ambi
ambi version
man -w ambi
[ -r /usr/share/bash-completion/completions/ambi ]
[ -r /usr/share/zsh/vendor-completions/_ambi ]

export CNI_PATH=/usr/lib/cni NETCONFPATH=/usr/share/doc/ambi/examples
export CAP_ARGS='{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}'
use() { # path of the namespace; runner; how to get inside
	path=$1 as=$2; shift 2
	$as cnitool add web $path
	"$@" peer http :80 & server=$!
	until peer get http://127.0.0.1:8080/; do sleep 0.1; done
	$as cnitool check web $path
	$as cnitool del web $path
	kill $server; wait $server || true
}
ip netns add c1
use /run/netns/c1 "" ip netns exec c1
ip netns del c1

asuser unshare -Urn sleep 1h & c1=$!
until [ "$(cat /proc/$c1/comm)" = sleep ]; do sleep 0.1; done
use /proc/$c1/ns/net asuser asuser nsenter -U -n --preserve-credentials -t $c1
kill $c1; wait $c1 || true

# With an attachment that is still there the package goes and the record stays, so
# that it can be cleaned up after the package has come back.
ip netns add c2
cnitool add web /run/netns/c2 >/dev/null
dpkg --remove ambi
ls /run/ambi/*.json
dpkg -i "$DEB"
cnitool del web /run/netns/c2
ip netns del c2

# What was enabled is disabled with it, and not when another version takes its place.
systemctl enable ambi-restore@nftables.service ambi-firewalld.service
[ -L /etc/systemd/system/nftables.service.wants/ambi-restore@nftables.service ]
dpkg -i "$DEB"
[ -L /etc/systemd/system/firewalld.service.wants/ambi-firewalld.service ]

dpkg --purge ambi
[ ! -e /usr/bin/ambi ]
if dpkg -s ambi; then exit 1; fi`

// TestPackageInside is the inner half of TestPackage.
func TestPackageInside(t *testing.T) {
	deb := os.Getenv("AMBI_E2E_DEB")
	if deb == "" {
		t.Skip("TestPackage runs it, in a machine of its own")
	}
	text, err := os.ReadFile(deb)
	require.NoError(t, err)
	require.NoError(t, furnish()) // with a /tmp of its own
	require.NoError(t, os.WriteFile(stage+"/ambi.deb", text, 0o644))
	written, err := layer()
	require.NoError(t, err)
	bash := func(script string) {
		cmd := exec.Command("timeout", "-k", "60", "1800", "bash", "-ex", "-c", script) // its conditions have no deadline of their own
		cmd.Env = append(os.Environ(), "DEB="+stage+"/ambi.deb", "PATH="+stage+"/sbin:"+stage+"/plugins:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		require.NoError(t, cmd.Run())
	}
	bash(withoutAmbi)
	// cnitool keeps what ADD said, for DEL; the folder for it stays.
	options := snapshot.Options{Ignore: []string{stage}, Settled: patience}
	before, filesBefore := options.Take(), everything(t, written)
	bash(lifeOfPackage)
	require.Empty(t, options.Difference(before))
	require.Equal(t, filesBefore, everything(t, written), "files of the root file system, and caches in /run and /tmp")
	t.Log("machine unchanged")
}

// layer puts a layer over the root file system, in which everything written lands, and
// returns the folder where that can be seen; the host's own is beside it, in "lower". A chroot would not do: users cannot make
// user namespaces in one.
func layer() (written string, err error) {
	const base = stage + "/layer"
	steps := [][]string{
		{"mkdir", base},
		{"mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", base},
		{"mkdir", base + "/upper", base + "/work", base + "/root", base + "/lower"},
		{"mount", "--bind", "/", base + "/lower"}, // without what is mounted in it
		{"mount", "-t", "overlay", "-o", "lowerdir=/,upperdir=" + base + "/upper,workdir=" + base + "/work", "overlay", base + "/root"},
		{"sh", "-c", "for m in /dev /proc /sys /tmp /etc/cni /var/lib/cni /etc/resolv.conf; do mount --rbind $m " + base + "/root$m || exit; done"},
		{"mount", "--rbind", "/run", base + "/root/run"},
	}
	for _, argv := range steps {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", &fs.PathError{Op: strings.Join(argv, " "), Path: string(out), Err: err}
		}
	}
	if err := os.Chdir(base + "/root"); err != nil {
		return "", err
	}
	// The old root is put on top of the new one, and taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return "", os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return "", os.NewSyscallError("umount", err)
	}
	return base + "/upper", os.Chdir("/")
}

// everything is each file that has been written or removed, each folder that is new,
// and the caches of ambi, which snapshot leaves out. What dpkg keeps for itself, logs and
// the list of packages, is left out.
func everything(t *testing.T, written string) string {
	own := []string{stage, "/run/netns", "/var/lib/dpkg", "/var/log", "/var/cache/man", "/var/cache/debconf"}
	var b strings.Builder
	for _, root := range []string{written, "/run", "/tmp"} {
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(path, written)
			if slices.Contains(own, name) {
				return fs.SkipDir
			}
			if root == written && d.IsDir() && isFolder(filepath.Dir(written)+"/lower"+name) {
				return nil // something in it has been written
			}
			b.WriteString(name + "\n")
			return nil
		}))
	}
	return b.String()
}

func isFolder(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}
