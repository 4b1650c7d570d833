package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"
)

// rootlesskit makes its own namespaces and runs the server in them.
func rootlesskit(sourceIP bool) func(int, *stopper) (*process, error) {
	return func(hostPort int, undo *stopper) (*process, error) {
		dir, err := userFolder(undo)
		if err != nil {
			return nil, err
		}
		publish := fmt.Sprintf("0.0.0.0:%d:%d/", hostPort, servicePort)
		p, err := start(asUser(exec.Command(stage+"/tools/rootlesskit", "--state-dir="+dir+"/state",
			"--net=slirp4netns", "--mtu=65520", "--disable-host-loopback", "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "--copy-up=/etc",
			"--port-driver=builtin", fmt.Sprintf("--source-ip-transparent=%t", sourceIP), "--publish", publish+"tcp", "--publish", publish+"udp",
			stage+"/bench", "serve", "-listen", fmt.Sprintf(":%d", servicePort))))
		if err != nil {
			return nil, err
		}
		undo.add(p.stop)
		return p, nil
	}
}

// slirp is a slirp4netns of ours for a container: as the driver of a peer, or as a
// forwarder itself.
type slirp struct {
	*process
	exit *os.File // closing it ends slirp4netns
}

// startSlirp starts slirp4netns as ambi does and waits until it is ready.
func startSlirp(c *container, more ...string) (*slirp, error) {
	exitRead, exitWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer exitRead.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		exitWrite.Close()
		return nil, err
	}
	defer readyRead.Close()
	argv := []string{"slirp4netns", "--configure", "--mtu=65520", "--enable-ipv6", "--enable-sandbox", "--enable-seccomp",
		"--exit-fd=3", "--ready-fd=4", "--netns-type=path"}
	cmd := c.owner(append(append(argv, more...), c.netns(), "tap0")...)
	cmd.ExtraFiles = []*os.File{exitRead, readyWrite}
	p, err := start(cmd)
	readyWrite.Close()
	if err != nil {
		exitWrite.Close()
		return nil, err
	}
	s := &slirp{p, exitWrite}
	_ = readyRead.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, _ := readyRead.Read(make([]byte, 1)); n != 1 {
		s.leave()
		return nil, fmt.Errorf("slirp4netns is not ready: %s", p.out.last())
	}
	return s, nil
}

// leave has slirp4netns go and waits for it.
func (s *slirp) leave() {
	s.exit.Close()
	<-s.done
}

// slirpForward publishes by the API of slirp4netns. It goes without
// --disable-host-loopback, with which no answer over UDP reaches a loopback client.
func slirpForward(hostPort int, undo *stopper) (*process, error) {
	c, err := furnished(undo)
	if err != nil {
		return nil, err
	}
	dir, err := userFolder(undo)
	if err != nil {
		return nil, err
	}
	s, err := startSlirp(c, "--api-socket="+dir+"/api")
	if err != nil {
		return nil, err
	}
	undo.add(s.leave)
	for _, protocol := range []string{"tcp", "udp"} {
		if err := addHostForward(dir+"/api", protocol, hostPort); err != nil {
			return nil, err
		}
	}
	return s.process, nil
}

func addHostForward(api, protocol string, hostPort int) error {
	c, err := net.DialTimeout("unix", api, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	ask, err := json.Marshal(map[string]any{"execute": "add_hostfwd", "arguments": map[string]any{
		"proto": protocol, "host_addr": "0.0.0.0", "host_port": hostPort, "guest_addr": "10.0.2.100", "guest_port": servicePort,
	}})
	if err != nil {
		return err
	}
	if _, err := c.Write(ask); err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	reply, err := io.ReadAll(c)
	if err == nil && bytes.Contains(reply, []byte(`"error"`)) {
		err = fmt.Errorf("add_hostfwd: %s", reply)
	}
	return err
}

// podmanRootlessport is where Debian's package has it.
const podmanRootlessport = "/usr/lib/podman/rootlessport"

// rootlessport is started as Podman does for a container with slirp4netns.
func rootlessport(hostPort int, undo *stopper) (*process, error) {
	c, err := furnished(undo)
	if err != nil {
		return nil, err
	}
	dir, err := userFolder(undo)
	if err != nil {
		return nil, err
	}
	s, err := startSlirp(c, "--disable-host-loopback")
	if err != nil {
		return nil, err
	}
	undo.add(s.leave)
	mapping := func(protocol string) netConf {
		return netConf{"host_ip": "", "host_port": hostPort, "container_port": servicePort, "range": 1, "protocol": protocol}
	}
	config, err := json.Marshal(netConf{
		"Mappings": []netConf{mapping("tcp"), mapping("udp")}, "NetNSPath": c.netns(), "ExitFD": 3, "ReadyFD": 4,
		"TmpDir": dir, "ChildIP": "10.0.2.100", "ContainerID": "bench", "RootlessCNI": false,
	})
	if err != nil {
		return nil, err
	}
	return startRootlessport(c, config, undo)
}

func startRootlessport(c *container, config []byte, undo *stopper) (*process, error) {
	exitRead, exitWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer exitRead.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd := c.owner(podmanRootlessport)
	cmd.Stdin = bytes.NewReader(config)
	cmd.ExtraFiles = []*os.File{exitRead, null} // readiness is seen by a connection
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	undo.add(func() {
		exitWrite.Close()
		p.stop()
	})
	return p, nil
}

// pasta forwards local connections by splice, others over its tap.
func pasta(hostPort int, undo *stopper) (*process, error) {
	c, err := furnished(undo)
	if err != nil {
		return nil, err
	}
	ports := fmt.Sprintf("%d:%d", hostPort, servicePort)
	p, err := start(asUser(exec.Command("pasta", "--foreground", "--quiet", "--config-net", "--no-map-gw",
		"-t", ports, "-u", ports, "-T", "none", "-U", "none", fmt.Sprint(c.PID))))
	if err != nil {
		return nil, err
	}
	undo.add(p.stop)
	return p, nil
}
