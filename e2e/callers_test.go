package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

// callerVariable names the caller's script that this process is to run, inside a
// machine.
const callerVariable = "AMBI_E2E_CALLER"

// TestCallers has the engines that people run call ambi: a script for each, in a
// machine of its own with the engine's folders empty. What a script needs and is
// not installed skips it, with the reason; when all are skipped that is a failure.
func TestCallers(t *testing.T) {
	if os.Getenv("AMBI_TEST_CALLERS") == "" {
		t.Skip("make e2e-callers runs it")
	}
	require.Zero(t, os.Geteuid(), "needs root, to make machines out of namespaces")
	scripts, err := filepath.Glob("callers/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, scripts)
	t.Cleanup(removeCgroups(t)) // when the last script has ended
	ran := make([]bool, len(scripts))
	t.Cleanup(func() {
		if !t.Failed() && !slices.Contains(ran, true) {
			t.Error("every caller was skipped")
		}
	})
	for i, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			t.Parallel()
			for _, program := range neededBy(t, script) {
				if reason := missing(program); reason != "" {
					t.Skip(reason)
				}
			}
			ran[i] = true
			out, err := inMachine("^TestCallerInside$", callerVariable+"="+script).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}

// removeCgroups takes away the empty cgroups that engines leave, which belong to
// the host and not to the machine; those that were there before stay.
func removeCgroups(t *testing.T) func() {
	left := func() (dirs []string) {
		for _, name := range []string{"default", "k8s.io", "buildkit"} { // two namespaces of containerd, and BuildKit's
			for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
				found, _ := filepath.Glob(pattern + name)
				dirs = append(dirs, found...)
			}
		}
		return dirs
	}
	before := left()
	return func() {
		for _, dir := range left() {
			if slices.Contains(before, dir) {
				continue
			}
			removeCgroup(t, dir)
		}
	}
}

// removeCgroup takes away a control group and those in it, in which no process is.
func removeCgroup(t *testing.T, dir string) {
	var all []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	for _, path := range slices.Backward(all) {
		if err := os.Remove(path); err != nil {
			t.Logf("a cgroup is left: %v", err)
		}
	}
}

var needsLine = regexp.MustCompile(`(?m)^# Needs: (.*)$`)

// neededBy are the programs that a script says it needs.
func neededBy(t *testing.T, script string) []string {
	text, err := os.ReadFile(script)
	require.NoError(t, err)
	m := needsLine.FindSubmatch(text)
	require.NotNil(t, m, "%s has no line \"# Needs: PROGRAM…\"", script)
	return strings.Fields(string(m[1]))
}

// missing says why a program cannot be run; empty when it can.
func missing(program string) string {
	if _, err := os.Stat("../.tools/bin/" + program); err == nil {
		return ""
	}
	_, err := exec.LookPath(program)
	if err == nil {
		return ""
	}
	// hack/setup-callers says why it could not install it.
	if reason, err := os.ReadFile("../.tools/missing/" + program); err == nil {
		return strings.TrimSpace(string(reason))
	}
	return err.Error()
}

// TestCallerInside is the inner half of TestCallers.
func TestCallerInside(t *testing.T) {
	script := os.Getenv(callerVariable)
	if script == "" {
		t.Skip("TestCallers runs it, in a machine of its own")
	}
	require.NoError(t, furnish())
	require.NoError(t, furnishForEngines())
	runScript(t, script, setupForEngine)
}

// furnishForEngines makes a machine one that engines run in: what they write goes
// into folders that go with it, and the user is one that may have subordinate ids.
func furnishForEngines() error {
	for _, script := range []string{
		// Engines expect that mounts are shared; with this namespace only.
		`mount --make-rshared /`,
		`for d in etc var opt home root; do
			mkdir -p ` + stage + `/layers/$d/upper ` + stage + `/layers/$d/work
			mount -t overlay -o lowerdir=/$d,upperdir=` + stage + `/layers/$d/upper,workdir=` + stage + `/layers/$d/work overlay /$d
		done`,
		// Not on an overlay, since an engine makes overlays of its own there.
		`for d in /var/lib/containers /var/lib/containerd /var/tmp /home; do
			mkdir -p $d && mount -t tmpfs -o mode=0755 tmpfs $d
		done
		chmod 1777 /var/tmp
		for d in /var/lib/cni /etc/cni /opt/cni; do
			rm -rf $d && mkdir -p $d
		done
		mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni/results && chmod 1777 /var/lib/cni/results
		cp ` + stage + `/bin/ambi /opt/cni/bin
		for p in bridge host-local firewall portmap; do ln -s ` + stage + `/plugins/$p /opt/cni/bin; done
		ln -s /usr/lib/cni/loopback /opt/cni/bin`,
		// What a machine of namespaces cannot give: cgroups, and more files than we have.
		`mkdir -p /etc/containers/containers.conf.d
		cat >/etc/containers/containers.conf.d/machine.conf <<END
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
END
`,
		`rm -f /etc/resolv.conf && echo nameserver 192.0.2.2 >/etc/resolv.conf
		echo 127.0.0.1 localhost >/etc/hosts`,
		`echo 'user:x:` + uid + `:` + uid + `::/home/user:/bin/sh' >>/etc/passwd
		echo 'user:x:` + uid + `:' >>/etc/group
		echo user:3000000000:65536 | tee /etc/subuid >/etc/subgid
		install -d -o ` + uid + ` -g ` + uid + ` /home/user`,
		`mkdir ` + stage + `/rootfs && cd ` + stage + `/rootfs && mkdir bin dev etc proc sys tmp && touch etc/resolv.conf
		cp /bin/busybox ` + stage + `/plugins/peer bin
		for lib in $(ldd /bin/busybox | grep -o '/[^ ]*'); do cp -L --parents $lib .; done # Debian has a static one, too
		for p in cat echo grep ip ls nslookup sh sleep; do ln -s busybox bin/$p; done
		tar -cf ` + stage + `/box.tar .
		cd ` + stage + ` && mkdir image && cd image && ln ../box.tar layer.tar
		printf '{"architecture": "%s", "os": "linux", "config": {"Cmd": ["/bin/sleep", "infinity"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' \
			$(dpkg --print-architecture) $(sha256sum layer.tar | cut -d' ' -f1) >config.json
		echo '[{"Config": "config.json", "RepoTags": ["localhost/box:latest"], "Layers": ["layer.tar"]}]' >manifest.json
		tar -cf ../box-image.tar *`,
	} {
		if out, err := exec.Command("sh", "-e", "-c", script).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
	}
	asuser := "#!/bin/sh\nexec setpriv --reuid " + uid + " --regid " + uid + " --clear-groups env HOME=/home/user USER=user TMPDIR=/tmp XDG_RUNTIME_DIR=/run/user/" + uid + ` "$@"` + "\n"
	// What a container asked a name server by itself, the kernel remembers for half a
	// minute; it is nobody's leftover.
	forget := "#!/bin/sh\nconntrack -D -p udp -d 192.0.2.2 >/dev/null 2>&1 || true\n"
	return errors.Join(os.WriteFile(stage+"/sbin/asuser", []byte(asuser), 0o755), os.WriteFile(stage+"/sbin/forgetdns", []byte(forget), 0o755))
}

func setupForEngine(env *testscript.Env) error {
	if err := setup(env); err != nil {
		return err
	}
	env.Setenv("PATH", stage+"/bin:"+env.Getenv("PATH"))
	return errors.Join(os.Symlink(stage+"/box.tar", "box.tar"), os.Symlink(stage+"/box-image.tar", "box-image.tar"))
}

// inBackground is how testscript is told to go on with the next line.
var inBackground = regexp.MustCompile(` &(\w+&)?$`)

// TestCallersDocs holds docs/callers.md to its word: each command of it is one that
// a script runs, and each file one that a script has.
func TestCallersDocs(t *testing.T) {
	scripts, err := filepath.Glob("callers/*.txtar")
	require.NoError(t, err)
	var all strings.Builder
	known := map[string]bool{}
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		require.NoError(t, err)
		all.Write(text)
		for line := range strings.Lines(string(text)) {
			// How a script says that a command is to be run, and by whom.
			words := inBackground.ReplaceAllString(strings.TrimSpace(line), "")
			for known[words] = true; ; known[words] = true {
				first, rest, more := strings.Cut(words, " ")
				if !more || !slices.Contains([]string{"exec", "poll", "!", "asuser"}, first) {
					break
				}
				words = rest
			}
		}
	}
	page, err := os.ReadFile("../docs/callers.md")
	require.NoError(t, err)
	commands, files := 0, 0
	for _, block := range regexp.MustCompile("(?s)```(\\w+)\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if block[1] != "sh" {
			files++
			require.Contains(t, all.String(), block[2], "no script has this file")
			continue
		}
		for line := range strings.Lines(block[2]) {
			if line = inBackground.ReplaceAllString(strings.TrimSpace(line), ""); line != "" && !strings.HasPrefix(line, "#") {
				commands++
				require.True(t, known[line], "no script runs %q", line)
			}
		}
	}
	require.NotZero(t, commands)
	require.NotZero(t, files)
}
