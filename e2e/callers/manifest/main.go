// Command manifest reads a manifest of deploy as strictly as an API server does, and
// does with its DaemonSet what a kubelet does, for ctr: the words of the command line
// "ctr run" that its container is started with, and the files of its ConfigMap.
//
//	manifest FILE FOLDER   the folder gets the ConfigMap's files
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: manifest FILE FOLDER")
		os.Exit(2)
	}
	words, err := run(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifest:", err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(words, " "))
}

func run(file, folder string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	files := map[string]map[string]string{} // of ConfigMaps
	var set apps.DaemonSet
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		var kind meta.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			return nil, err
		}
		switch kind.APIVersion + " " + kind.Kind {
		case "v1 ConfigMap":
			var m core.ConfigMap
			if err := yaml.UnmarshalStrict(document, &m); err != nil {
				return nil, err
			}
			files[m.Name] = m.Data
		case "apps/v1 DaemonSet":
			if err := yaml.UnmarshalStrict(document, &set); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("a %s is not expected", kind.Kind)
		}
	}
	if err := promises(set.Spec.Template.Spec); err != nil {
		return nil, err
	}
	return words(set.Spec.Template.Spec, files, folder)
}

// promises are what docs/kubernetes.md says of the pod.
func promises(p core.PodSpec) error {
	everything := len(p.Tolerations) == 1 && p.Tolerations[0] == core.Toleration{Operator: core.TolerationOpExists}
	token := p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken || p.ServiceAccountName != ""
	switch {
	case !p.HostNetwork:
		return errors.New("it has not the host's network")
	case !everything:
		return errors.New("it does not tolerate everything")
	case token:
		return errors.New("it has a token of the API server")
	case p.PriorityClassName != "system-node-critical":
		return errors.New("it is not system-node-critical")
	case len(p.Containers) != 1:
		return errors.New("it has not one container")
	}
	s := p.Containers[0].SecurityContext
	if s == nil || s.Privileged != nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.Capabilities.Drop[0] != "ALL" || s.Capabilities.Add != nil {
		return errors.New("its container may do more than write to its folders")
	}
	return nil
}

// words are those behind "ctr run".
func words(p core.PodSpec, files map[string]map[string]string, folder string) ([]string, error) {
	c := p.Containers[0]
	all := []string{"--net-host", "--read-only"}
	for _, capability := range strings.Fields("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE") {
		all = append(all, "--cap-drop=CAP_"+capability) // those of containerd by default
	}
	for _, m := range c.VolumeMounts {
		source, err := sourceOf(p.Volumes, m.Name, files, folder)
		if err != nil {
			return nil, err
		}
		may := "rw"
		if m.ReadOnly {
			may = "ro"
		}
		all = append(all, "--mount=type=bind,src="+source+",dst="+m.MountPath+",options=rbind:"+may)
	}
	return append(append(all, c.Image, c.Name, "/ambi"), c.Args...), nil
}

// sourceOf is where a volume lies on this host.
func sourceOf(volumes []core.Volume, name string, files map[string]map[string]string, folder string) (string, error) {
	for _, v := range volumes {
		switch {
		case v.Name != name:
		case v.HostPath != nil:
			return v.HostPath.Path, os.MkdirAll(v.HostPath.Path, 0o755)
		case v.ConfigMap != nil:
			data, ok := files[v.ConfigMap.Name]
			if !ok {
				return "", fmt.Errorf("there is no ConfigMap %s", v.ConfigMap.Name)
			}
			for file, text := range data {
				if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
					return "", err
				}
			}
			return folder, nil
		}
	}
	return "", fmt.Errorf("there is no volume %s", name)
}
