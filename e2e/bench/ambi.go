package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// portMapping is one of runtimeConfig.portMappings.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// netConf is a network configuration as a runtime hands it to the plugin.
type netConf map[string]any

func ambiConf(name string, more netConf) netConf {
	c := netConf{"cniVersion": "1.0.0", "name": name, "type": "ambi", "capabilities": map[string]bool{"portMappings": true}, "rootless": netConf{"network": "private"}}
	for key, value := range more {
		c[key] = value
	}
	return c
}

// verb prepares one call of ambi; the caller decides who makes it.
func verb(cmd *exec.Cmd, command, containerID, netns string, conf netConf) *exec.Cmd {
	stdin, err := json.Marshal(conf)
	if err != nil {
		panic(err) // our own maps
	}
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(cmd.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+containerID, "CNI_NETNS="+netns, "CNI_IFNAME=eth0",
		"CNI_PATH="+stage+"/bin:"+stage+"/tools")
	return cmd
}

// call makes a call and turns the plugin's error document into an error.
func call(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// ambi publishes by one ADD of ambi as the user.
func ambi(sourceIP string) func(int, *stopper) (*process, error) {
	return ambiBy(ambiBinary, netConf{"network": "private", "sourceIP": sourceIP})
}

// ambiBy does the same by a binary and with these keys of rootless.
func ambiBy(binary string, rootless netConf) func(int, *stopper) (*process, error) {
	return func(hostPort int, undo *stopper) (*process, error) {
		c, err := furnished(undo)
		if err != nil {
			return nil, err
		}
		conf := ambiConf("bench", netConf{
			"rootless": rootless,
			"runtimeConfig": netConf{"portMappings": []portMapping{
				{hostPort, servicePort, "tcp"}, {hostPort, servicePort, "udp"},
			}},
		})
		run := func(command string) error {
			return call(verb(asUser(exec.Command(binary)), command, fmt.Sprintf("box%d", hostPort), c.netns(), conf))
		}
		undo.add(func() { _ = run("DEL") })
		return nil, run("ADD")
	}
}
