package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// What podman run and podman rm take, of which the network is a part.

// podmanNetworks are those that containers are run in. Each has a bridge of its own.
func podmanNetworks() map[string][]netConf {
	bridge := func(n int) netConf {
		return netConf{
			"type": "bridge", "bridge": fmt.Sprintf("podman%d", n), "isGateway": true, "ipMasq": true, "hairpinMode": true,
			"ipam": netConf{"type": "host-local", "routes": []netConf{{"dst": "0.0.0.0/0"}}, "ranges": [][]netConf{{{"subnet": fmt.Sprintf("10.78.%d.0/24", n)}}}},
		}
	}
	return map[string][]netConf{
		"ambi":    {withPorts(netConf{"type": "ambi", "delegates": []netConf{bridge(1), {"type": "firewall"}}})},
		"builtin": {withPorts(netConf{"type": "ambi", "bridge": netConf{"subnet": "10.78.4.0/24"}})},
		"plugins": {bridge(2), withPorts(netConf{"type": "portmap"}), {"type": "firewall"}},
		"nft":     {bridge(3), withPorts(netConf{"type": "portmap", "backend": "nftables"}), {"type": "firewall"}},
	}
}

// podmanConfig is Podman's whole configuration: nothing of the host's counts.
const podmanConfig = `[network]
network_backend = "cni"
network_config_dir = "` + stage + `/podman/networks"
cni_plugin_dirs = ["` + stage + `/bin", "` + stage + `/tools"]
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

func podman(args ...string) *exec.Cmd {
	cmd := exec.Command("podman", append([]string{"--root", stage + "/podman/root", "--runroot", stage + "/podman/run", "--storage-driver", "vfs"}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+stage+"/podman/containers.conf")
	return cmd
}

// furnishPodman makes its folders, and the root of a container with this program.
func furnishPodman() error {
	dir := stage + "/podman/"
	list := [][]string{
		{"install", "-D", "-m", "0755", "-t", dir + "rootfs/bin", stage + "/bench"},
		// crun knows only the unified hierarchy.
		{"mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"},
	}
	if err := steps(list); err != nil {
		return err
	}
	if err := os.WriteFile(dir+"containers.conf", []byte(podmanConfig), 0o644); err != nil {
		return err
	}
	for name, plugins := range podmanNetworks() {
		if err := writeConflist(dir+"networks", name, plugins); err != nil {
			return err
		}
	}
	return nil
}

// podmanLife is one container, from podman run until podman rm.
func podmanLife(network string) life {
	return func() (start, stop float64, err error) {
		name := "bench-" + network
		start, err = milliseconds(podman("run", "-d", "--name", name, "--network", network, "-p", "10080:80", "--rootfs", stage+"/podman/rootfs", "/bin/bench", "serve", "-listen", ":80"))
		var stopErr error
		stop, stopErr = milliseconds(podman("rm", "-f", "-t", "0", name))
		return start, stop, errors.Join(err, stopErr)
	}
}

// engine compares containers of Podman that differ in their network alone.
func (p *costPlan) engine() error {
	if err := furnishPodman(); err != nil {
		return err
	}
	const overPlugins, chain = "ambi over bridge + firewall", "bridge + portmap + firewall"
	for _, c := range []struct{ key, subject, ours, other, network string }{
		{"podman_builtin", "ambi", "builtin", chain, "plugins"},
		{"podman", overPlugins, "ambi", chain, "plugins"},
		{"podman_nftables", overPlugins, "ambi", "the same, portmap by nftables", "nft"},
	} {
		start := p.compare(comparison{Key: c.key + "_run", Title: "podman run, 1 port", Section: byPodman, Subject: c.subject, Other: c.other, Unit: "ms"})
		stop := p.compare(comparison{Key: c.key + "_rm", Title: "podman rm -f", Section: byPodman, Subject: c.subject, Other: c.other, Unit: "ms"})
		if err := lives(p.times, start, stop, podmanLife(c.ours), podmanLife(c.network)); err != nil {
			return err
		}
	}
	return nil
}
