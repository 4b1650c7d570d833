package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// bootVariable is which boot of the node this process is to be, inside a machine.
const bootVariable = "AMBI_E2E_BOOT"

// diskVariable is the folder that the node has as its disk.
const diskVariable = "AMBI_E2E_DISK"

// boots are the lives of the node: a new machine each, with the disk of the one before,
// which was switched off.
var boots = []struct {
	proxy    string // mode of kube-proxy
	chapters []string
}{
	{"iptables", []string{"install", "many", "traffic", "failures", "restarts", "upgrade"}},
	{"nftables", []string{"reboot", "traffic", "uninstall", "chained"}},
}

// TestKubernetes is a cluster of one whose network is ambi, and what happens in its life:
// the scripts of the folder kubernetes, one after the other, on the same node. All of
// Kubernetes runs in machines of namespaces, and what it leaves on the disk goes in the end.
func TestKubernetes(t *testing.T) {
	if os.Getenv("AMBI_TEST_KUBERNETES") == "" {
		t.Skip("make e2e-kubernetes runs it")
	}
	require.Zero(t, os.Geteuid(), "needs root, to make machines out of namespaces")
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Hour)
	t.Cleanup(cancel)
	// Not below /tmp, where a machine has its own.
	disk, err := os.MkdirTemp("/var/tmp", "ambi-kubernetes-")
	require.NoError(t, err)
	t.Cleanup(func() { discard(t, disk) })
	removeGroups := removeCgroups(t)
	t.Cleanup(removeGroups)
	for n := range boots {
		cmd := inMachine("^TestKubernetesInside$", bootVariable+"="+strconv.Itoa(n), diskVariable+"="+disk)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(t, cmd.Start())
		ended := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait() // and with it everything that runs in the machine
		ended()
		removeGroups() // those of the host outlive the node, and the next kubelet would look for what was in them
		require.NoError(t, errors.Join(err, context.Cause(ctx)), "boot %d", n+1)
	}
}

// discard takes away what the node had on its disk. When the test failed the logs stay.
func discard(t *testing.T, disk string) {
	if t.Failed() {
		const logs = "../reports/kubernetes"
		if err := errors.Join(os.RemoveAll(logs), os.CopyFS(logs, os.DirFS(disk+"/var/log"))); err != nil {
			t.Log(err)
		}
		t.Log("the logs of the node are in reports/kubernetes")
	}
	require.NoError(t, os.RemoveAll(disk))
}

// TestKubernetesInside is one boot of TestKubernetes.
func TestKubernetesInside(t *testing.T) {
	disk := os.Getenv(diskVariable)
	if disk == "" {
		t.Skip("TestKubernetes runs it, in a machine of its own")
	}
	n, err := strconv.Atoi(os.Getenv(bootVariable))
	require.NoError(t, err)
	require.NoError(t, furnish())
	const folder = stage + "/checkout/e2e/kubernetes/" // the working folder may be below /tmp, which is another one now
	t.Setenv("PATH", fmt.Sprintf("%[1]s/sbin:%[1]s/plugins/containerd-2.4:%[1]s/plugins:%[2]s", stage, os.Getenv("PATH")))
	for _, boot := range [][]string{
		{folder + "node/furnish", disk, boots[n].proxy},
		{"service", "start", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet", "kube-proxy"},
	} {
		out, err := exec.Command(boot[0], boot[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	for _, chapter := range boots[n].chapters {
		begin := time.Now()
		fmt.Printf("\nkubernetes: %s (kube-proxy with %s)\n", chapter, boots[n].proxy)
		testscript.RunT(teller{t}, testscript.Params{
			Files: []string{folder + chapter + ".txtar"}, Setup: setupForKubectl, Cmds: unhurried(), WorkdirRoot: stage,
		})
		if t.Failed() {
			diagnose()
			t.FailNow()
		}
		fmt.Printf("kubernetes: %s took %s\n", chapter, time.Since(begin).Round(time.Second))
	}
	unix.Sync() // what the next boot finds is not what is tested
}

func setupForKubectl(env *testscript.Env) error {
	if err := setup(env); err != nil {
		return err
	}
	env.Setenv("PATH", os.Getenv("PATH"))
	env.Setenv("KUBECONFIG", "/etc/kubernetes/admin.kubeconfig")
	env.Setenv("DEPLOY", stage+"/checkout/deploy")
	return nil
}

// unhurried are the commands of scripts, of which poll lets the others work: kubectl is
// no small program.
func unhurried() map[string]func(*testscript.TestScript, bool, []string) {
	all := maps.Clone(commands)
	all["poll"] = func(ts *testscript.TestScript, neg bool, args []string) {
		need(ts, neg, args, 1)
		for deadline := time.Now().Add(2 * patience); ; time.Sleep(500 * time.Millisecond) {
			err := ts.Exec(args[0], args[1:]...)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				ts.Fatalf("%q for %s: %v", args, 2*patience, err)
			}
		}
	}
	return all
}

// diagnose prints what one would look at first.
func diagnose() {
	for _, args := range [][]string{
		{"get", "nodes,pods,services,endpointslices", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
	} {
		cmd := exec.Command("kubectl", append([]string{"--kubeconfig=/etc/kubernetes/admin.kubeconfig"}, args...)...)
		out, err := cmd.CombinedOutput()
		fmt.Printf("kubectl %q: %v\n%s\n", args, err, out)
	}
}

// teller is a test whose scripts tell what they did as soon as they end, section by
// section, and run one after the other.
type teller struct{ *testing.T }

func (t teller) Parallel()       {}
func (t teller) Verbose() bool   { return false }
func (t teller) Log(args ...any) { fmt.Println(args...) }
func (t teller) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(teller{t}) })
}
