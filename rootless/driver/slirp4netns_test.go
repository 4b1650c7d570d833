package driver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// driverWithout is a slirp4netns of all features but these.
func driverWithout(missing ...string) *program {
	d := &program{binary{Path: "/usr/bin/slirp4netns", Features: make(map[string]bool)}}
	for _, f := range features {
		d.Features[f] = !slices.Contains(missing, f)
	}
	return d
}

func TestDriverArguments(t *testing.T) {
	const all = "--netns-type=path --mtu=65520 --cidr=10.0.2.0/24 --enable-ipv6 --disable-host-loopback --enable-sandbox --enable-seccomp"
	for _, tt := range []struct {
		name, members string
		driver        *program
		want          string
	}{
		{"the defaults", ``, driverWithout(), all},
		{"no hardening in the binary", ``, driverWithout("enable-sandbox", "enable-seccomp"),
			"--netns-type=path --mtu=65520 --cidr=10.0.2.0/24 --enable-ipv6 --disable-host-loopback"},
		{"hardening off", `"rootless":{"sandbox":false,"seccomp":false}`, driverWithout(),
			"--netns-type=path --mtu=65520 --cidr=10.0.2.0/24 --enable-ipv6 --disable-host-loopback"},
		{"the default network needs no --cidr", ``, driverWithout("cidr"),
			"--netns-type=path --mtu=65520 --enable-ipv6 --disable-host-loopback --enable-sandbox --enable-seccomp"},
		{"IPv6 by default, not in the binary", ``, driverWithout("enable-ipv6"),
			"--netns-type=path --mtu=65520 --cidr=10.0.2.0/24 --disable-host-loopback --enable-sandbox --enable-seccomp"},
		{"IPv6 off", `"rootless":{"enableIPv6":false}`, driverWithout(),
			"--netns-type=path --mtu=65520 --cidr=10.0.2.0/24 --disable-host-loopback --enable-sandbox --enable-seccomp"},
		{"the host's loopback", `"rootless":{"allowHostLoopback":true}`, driverWithout("disable-host-loopback"),
			"--netns-type=path --mtu=65520 --cidr=10.0.2.0/24 --enable-ipv6 --enable-sandbox --enable-seccomp"},
		{"everything", `"rootless":{"cidr":"10.9.0.0/16","mtu":1500,"enableIPv6":true,"outboundAddr":"192.0.2.1","outboundAddr6":"2001:db8::1","disableDNS":true}`,
			driverWithout(), "--netns-type=path --mtu=1500 --cidr=10.9.0.0/16 --enable-ipv6 --disable-host-loopback" +
				" --disable-dns --enable-sandbox --enable-seccomp --outbound-addr=192.0.2.1 --outbound-addr6=2001:db8::1"},
		{"an interface", `"rootless":{"outboundAddr":"lo"}`, driverWithout(), all + " --outbound-addr=127.0.0.1"},
		{"the API is not an argument here", `"rootless":{"portHandler":"slirp4netns"}`, driverWithout(), all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := attachment(t, tt.members)
			parsed := a.NetConf.Rootless
			c, err := tt.driver.Command(a.NetConf.Rootless, "eth0")
			require.NoError(t, err)
			outbound, err := slirpOutbound(c)
			require.NoError(t, err)
			require.Equal(t, tt.want, strings.Join(slices.Concat(c.Args, outbound), " "))
			p, err := tt.driver.Plan(a)
			require.NoError(t, err)
			require.Equal(t, parsed, a.NetConf.Rootless, "nothing that was parsed is changed")
			require.Equal(t, slices.Contains(c.Args, "--enable-ipv6"), p.IPv6.Enabled(), "the plan goes by what the driver does")
		})
	}
}

// What was asked for and the binary does not have is an error that names the key.
func TestDriverLacksAFeature(t *testing.T) {
	for _, tt := range []struct{ feature, members, key, value string }{
		{"cidr", `"rootless":{"cidr":"10.9.0.0/16"}`, "rootless.cidr", "10.9.0.0/16"},
		{"enable-ipv6", `"rootless":{"enableIPv6":true}`, "rootless.enableIPv6", "true"},
		{"enable-ipv6", `"args":{"cni":{"slirp4netns":["enable_ipv6=true"]}}`, "rootless.enableIPv6", "true"},
		{"outbound-addr", `"rootless":{"outboundAddr":"192.0.2.1"}`, "rootless.outboundAddr", "192.0.2.1"},
		{"outbound-addr6", `"rootless":{"outboundAddr6":"2001:db8::1"}`, "rootless.outboundAddr6", "2001:db8::1"},
		{"disable-dns", `"rootless":{"disableDNS":true}`, "rootless.disableDNS", "true"},
		{"mtu", `"rootless":{"mtu":9000}`, "rootless.mtu", "9000"},
		{"disable-host-loopback", ``, "rootless.allowHostLoopback", "false"},
		{"api-socket", `"rootless":{"portHandler":"slirp4netns"}`, "rootless.portHandler", "slirp4netns"},
	} {
		t.Run(tt.feature, func(t *testing.T) {
			r := attachment(t, tt.members).NetConf.Rootless
			_, err := driverWithout(tt.feature).Command(r, "eth0")
			unit.RequireError(t, err, types.ErrUnsupportedField, fmt.Sprintf("%q", tt.key), tt.value, "--"+tt.feature, "install a newer slirp4netns")
		})
	}
}

func TestOutboundInterfaceIsLookedFor(t *testing.T) {
	for _, key := range []string{"outboundAddr", "outboundAddr6"} {
		r := attachment(t, `"rootless":{"`+key+`":"nosuchif0"}`).NetConf.Rootless
		_, err := driverWithout().Command(r, "eth0")
		unit.RequireError(t, err, types.ErrInvalidNetworkConfig, `"rootless.`+key+`"`, "nosuchif0", "interface of this host")
	}
}

func findSlirp(configured, cacheDir string) (*program, error) {
	found, err := slirp4netns{}.Find(configured, cacheDir)
	p, _ := found.(*program)
	return p, err
}

// fakeDriver is a program that answers --help with this text and notes each run.
func fakeDriver(t *testing.T, help string) (path string, runs func() int) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "slirp4netns")
	script := "#!/bin/sh\necho run >>" + dir + "/runs\ncat <<'E'\n" + help + "\nE\n"
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	return path, func() int {
		b, _ := os.ReadFile(dir + "/runs")
		return strings.Count(string(b), "run")
	}
}

const minimalHelp = "-e, --exit-fd=FD  x\n-r, --ready-fd=FD  x\n--netns-type=TYPE  x\n"

func TestFindDriverLearnsFeatures(t *testing.T) {
	path, _ := fakeDriver(t, minimalHelp+"-m, --mtu=MTU  x\n--outbound-addr6=IPv6 x\n--enable-sandbox x\n--enable-seccomp")
	d, err := findSlirp(path, t.TempDir())
	require.NoError(t, err)
	var got []string
	for _, f := range features {
		if d.Features[f] {
			got = append(got, f)
		}
	}
	require.Equal(t, []string{"mtu", "enable-sandbox", "enable-seccomp", "outbound-addr6", "netns-type", "ready-fd", "exit-fd"}, got)
}

func TestFindDriverCaches(t *testing.T) {
	cache := t.TempDir()
	path, runs := fakeDriver(t, minimalHelp)
	search := func() *program {
		d, err := findSlirp(path, cache)
		require.NoError(t, err)
		return d
	}
	first := search()
	require.Equal(t, first, search())
	require.Equal(t, 1, runs())

	require.NoError(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)))
	search()
	require.Equal(t, 2, runs(), "another binary is asked again")

	for _, damage := range []string{"", "{", `{"path":"` + path + `"}`, "null"} {
		for _, f := range glob(t, cache) {
			require.NoError(t, os.WriteFile(f, []byte(damage), 0o600))
		}
		before := runs()
		require.Equal(t, first.Features, search().Features)
		require.Equal(t, before+1, runs(), "a damaged cache does not count: %q", damage)
	}
	require.Len(t, glob(t, cache), 1, "and nothing else is left there")

	_, err := findSlirp(path, "/nonexistent/cache")
	require.NoError(t, err, "a cache that cannot be written does no harm")
}

func glob(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(dir + "/*")
	require.NoError(t, err)
	return found
}

func TestFindDriverFails(t *testing.T) {
	old, _ := fakeDriver(t, "-m, --mtu=MTU")
	broken := filepath.Join(t.TempDir(), "slirp4netns")
	require.NoError(t, os.WriteFile(broken, []byte("#!/bin/sh\necho no library >&2\nexit 127\n"), 0o755))
	// As much as a test may have of what has no end.
	endless := filepath.Join(t.TempDir(), "slirp4netns")
	require.NoError(t, os.WriteFile(endless, []byte("#!/bin/sh\nyes 'no help' | head -c 20000000\n"), 0o755))
	for _, tt := range []struct {
		name, path string
		texts      []string
	}{
		{"missing", "/nonexistent/slirp4netns", []string{"/nonexistent/slirp4netns", "rootless.path", "install the package slirp4netns"}},
		{"not a program", "/dev/null", []string{"/dev/null", "permission denied"}},
		{"too old", old, []string{old, "too old", "0.4.0"}},
		{"broken", broken, []string{broken, "no library"}},
		{"endless", endless, []string{endless, "more than 65536 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := findSlirp(tt.path, t.TempDir())
			unit.RequireError(t, err, conf.ErrPluginNotAvailable, tt.texts...)
		})
	}
}

func TestFindDriverOfThisHost(t *testing.T) {
	if _, err := exec.LookPath("slirp4netns"); err != nil {
		t.Skip("slirp4netns is not installed")
	}
	d, err := findSlirp("", t.TempDir())
	require.NoError(t, err)
	for _, f := range []string{"mtu", "cidr", "enable-ipv6", "disable-host-loopback", "outbound-addr", "api-socket"} {
		require.True(t, d.Features[f], f)
	}
}

func TestLastLines(t *testing.T) {
	for _, tt := range []struct {
		in   string
		n    int
		want string
	}{
		{"", 3, ""}, {"\n\n", 3, ""}, {"one", 3, "one"}, {"a\nb\nc\nd\n", 3, "b | c | d"}, {"a\nb", 1, "b"},
	} {
		require.Equal(t, tt.want, LastLines(tt.in, tt.n))
	}
}
