package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// What containers and sandboxes of containerd take, of which the network is a part: by ctr,
// and by its Container Runtime Interface with crictl.

const (
	containerdDir    = stage + "/containerd"
	containerdSocket = containerdDir + "/containerd.sock"
)

// containerdConfig has a runtime handler for each network, so that both are there at once.
const containerdConfig = `version = 3
root = "` + containerdDir + `/root"
state = "` + containerdDir + `/state"
[grpc]
address = "` + containerdSocket + `"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/bench:latest"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "` + containerdDir + `/ambi"
use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.ambi]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock]
runtime_type = "io.containerd.runc.v2"
cni_conf_dir = "` + containerdDir + `/stock"
`

// containerdNetworks are the built-in one, and the chain that installers of containerd bring.
func containerdNetworks() map[string][]netConf {
	return map[string][]netConf{
		"ambi": {withPorts(netConf{"type": "ambi"})},
		"stock": {{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
			"ipam": netConf{"type": "host-local", "routes": []netConf{{"dst": "0.0.0.0/0"}}, "ranges": [][]netConf{{{"subnet": "10.76.0.0/24"}}}},
		}, withPorts(netConf{"type": "portmap"})},
	}
}

// startContainerd has containerd run in this world, with the image and both networks.
func startContainerd() (*process, error) {
	if err := furnishContainerd(); err != nil {
		return nil, err
	}
	daemon := exec.Command(stage+"/tools/containerd-2.4/containerd", "--config", containerdDir+"/config.toml")
	// It finds its shim on the path.
	daemon.Env = append(os.Environ(), "PATH="+stage+"/tools/containerd-2.4:"+os.Getenv("PATH"))
	p, err := start(daemon)
	if err != nil {
		return nil, err
	}
	if err := until("containerd", p, func() bool { return crictl("info").Run() == nil }); err != nil {
		p.stop()
		return nil, err
	}
	return p, call(ctr("images", "import", "--local", containerdDir+"/image.tar"))
}

func furnishContainerd() error {
	if err := steps([][]string{
		// ctr looks for plugins there and nowhere else.
		{"mount", "-t", "tmpfs", "tmpfs", "/opt"},
		{"mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d", containerdDir + "/image"},
		{"ln", "-s", "-t", "/opt/cni/bin", stage + "/bin/ambi", stage + "/tools/bridge", stage + "/tools/host-local", stage + "/tools/portmap"},
		{"tar", "-C", stage, "-cf", containerdDir + "/image/layer.tar", "bench"},
	}); err != nil {
		return err
	}
	for name, plugins := range containerdNetworks() {
		if err := writeConflist(containerdDir+"/"+name, name, plugins); err != nil {
			return err
		}
	}
	pod := `{"metadata": {"name": "bench", "namespace": "default", "uid": "1"}, "port_mappings": [{"host_port": 10080, "container_port": 80}], "linux": {}}`
	return errors.Join(
		os.WriteFile(containerdDir+"/config.toml", []byte(containerdConfig), 0o644),
		os.WriteFile(containerdDir+"/pod.json", []byte(pod), 0o644),
		writeImage(containerdDir+"/image"))
}

// writeImage makes an image in the form of "docker save" of the layer in a folder: this
// program, which serves until it is ended.
func writeImage(dir string) error {
	layer, err := os.ReadFile(dir + "/layer.tar")
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`{"architecture": %q, "os": "linux", "config": {"Cmd": ["/bench", "serve", "-listen", ":80"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%x"]}}`,
		runtime.GOARCH, sha256.Sum256(layer))
	const manifest = `[{"Config": "config.json", "RepoTags": ["localhost/bench:latest"], "Layers": ["layer.tar"]}]`
	if err := errors.Join(os.WriteFile(dir+"/config.json", []byte(config), 0o644), os.WriteFile(dir+"/manifest.json", []byte(manifest), 0o644)); err != nil {
		return err
	}
	return step("tar", "-C", dir, "-cf", dir+".tar", "manifest.json", "config.json", "layer.tar")
}

// ctr is one call in the namespace of the Container Runtime Interface, whose images it
// shares.
func ctr(args ...string) *exec.Cmd {
	return exec.Command(stage+"/tools/containerd-2.4/ctr", append([]string{"--address", containerdSocket, "--namespace", "k8s.io"}, args...)...)
}

func crictl(args ...string) *exec.Cmd {
	return exec.Command(stage+"/tools/crictl/crictl", append([]string{"-r", "unix://" + containerdSocket, "-i", "unix://" + containerdSocket}, args...)...)
}

// ctrLife is one container in the foreground, whose program ends at once.
func ctrLife(network string) (float64, error) {
	if err := step("cp", containerdDir+"/"+network+"/"+network+".conflist", "/etc/cni/net.d/net.conflist"); err != nil {
		return 0, err
	}
	return milliseconds(ctr("run", "--rm", "--cni", "localhost/bench:latest", "bench", "/bench", "serve", "-h"))
}

// sandboxLife is one sandbox with a host port: how long its start and its end took.
func sandboxLife(network string) (begin, end float64, err error) {
	begin, err = milliseconds(crictl("runp", "--runtime", network, containerdDir+"/pod.json"))
	if err != nil {
		return 0, 0, err
	}
	id, err := crictl("pods", "-q").Output()
	if err != nil {
		return 0, 0, err
	}
	end, err = milliseconds(crictl("rmp", "-f", strings.TrimSpace(string(id))))
	return begin, end, err
}

// containerd compares containers and sandboxes that differ in their network alone.
func (p *costPlan) containerd() error {
	daemon, err := startContainerd()
	defer removeCgroups()
	defer daemon.stop()
	if err != nil {
		return err
	}
	row := func(key, title string) *comparison {
		return p.compare(comparison{Key: key, Title: title, Section: byContainerd, Subject: "ambi", Other: "bridge + portmap", Unit: "ms"})
	}
	run, begin, end := row("ctr_run", "ctr run --rm, ADD and DEL"), row("sandbox_run", "crictl runp, 1 port"), row("sandbox_rm", "crictl rmp -f")
	for n := range p.times + 1 {
		var took [2]struct{ run, begin, end float64 }
		for i, network := range []string{"ambi", "stock"} {
			t := &took[i]
			if t.run, err = ctrLife(network); err != nil {
				return err
			}
			if t.begin, t.end, err = sandboxLife(network); err != nil {
				return err
			}
		}
		if n > 0 { // the first time makes bridges and chains
			run.add(took[0].run, took[1].run)
			begin.add(took[0].begin, took[1].begin)
			end.add(took[0].end, took[1].end)
		}
	}
	return nil
}

// removeCgroups takes away the empty ones that containerd leaves, which belong to the host
// and not to the world; those of somebody else's containers are not empty.
func removeCgroups() {
	_ = exec.Command("find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*/k8s.io*", "-exec", "rmdir", "{}", ";").Run()
}
