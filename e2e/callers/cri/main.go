// Command cri speaks the Container Runtime Interface to containerd, as a kubelet
// does. It does what these scripts need and no more.
//
//	cri status                      whether the network is ready, and its conflists
//	cri runp NAME [HOSTPORT:PORT]…  run a pod sandbox; prints its ID
//	cri ip POD                      its state and addresses
//	cri run POD NAME COMMAND…       run a container of image box in it; prints its ID
//	cri exec CONTAINER COMMAND…     run a command in a container; prints its output
//	cri forward POD PORT            what a GET of http://127.0.0.1:PORT/ in the pod says,
//	                                by port-forward
//	cri pods                        IDs of all sandboxes
//	cri stopp POD                   stop a sandbox
//	cri rmp POD                     remove a sandbox
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	socket   = "unix:///run/containerd/containerd.sock"
	image    = "localhost/box:latest"
	patience = 30 * time.Second
)

// client is a connection to containerd.
type client struct {
	cri.RuntimeServiceClient
	ctx context.Context
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := grpc.DialContext(ctx, socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithBlock())
	if err != nil {
		return fmt.Errorf("%s: %w", socket, err)
	}
	defer conn.Close()
	c := client{cri.NewRuntimeServiceClient(conn), ctx}
	type command struct {
		least int
		run   func(args []string) error
	}
	commands := map[string]command{
		"status": {0, c.status}, "runp": {1, c.runPod}, "ip": {1, c.ip}, "run": {3, c.runContainer}, "exec": {2, c.exec},
		"forward": {2, c.forward}, "pods": {0, c.pods}, "stopp": {1, c.stopPod}, "rmp": {1, c.removePod},
	}
	if len(args) == 0 {
		return errors.New("no command; see its source")
	}
	chosen, ok := commands[args[0]]
	if !ok || len(args)-1 < chosen.least {
		return fmt.Errorf("bad command %q", args)
	}
	return chosen.run(args[1:])
}

func (c client) status([]string) error {
	s, err := c.Status(c.ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return err
	}
	for _, condition := range s.Status.Conditions {
		fmt.Println(condition.Type, condition.Status, condition.Message)
	}
	fmt.Println(s.Info["cniconfig"])
	return nil
}

// sandbox is the configuration of a pod; kubelets give the same again for each of
// its containers.
func sandbox(name string, ports []string) (*cri.PodSandboxConfig, error) {
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Linux:    &cri.LinuxPodSandboxConfig{},
	}
	for _, p := range ports {
		host, container, ok := strings.Cut(p, ":")
		hostPort, err := strconv.ParseUint(host, 10, 16)
		containerPort, err2 := strconv.ParseUint(container, 10, 16)
		if err := errors.Join(err, err2); err != nil || !ok {
			return nil, fmt.Errorf("port %q is not HOSTPORT:PORT", p)
		}
		config.PortMappings = append(config.PortMappings, &cri.PortMapping{HostPort: int32(hostPort), ContainerPort: int32(containerPort)})
	}
	return config, nil
}

func (c client) runPod(args []string) error {
	config, err := sandbox(args[0], args[1:])
	if err != nil {
		return err
	}
	pod, err := c.RunPodSandbox(c.ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	fmt.Println(pod.PodSandboxId)
	return nil
}

func (c client) ip(args []string) error {
	s, err := c.PodSandboxStatus(c.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: args[0]})
	if err != nil {
		return err
	}
	fmt.Print(s.Status.State, " ", s.Status.Network.GetIp())
	for _, ip := range s.Status.Network.GetAdditionalIps() {
		fmt.Print(" ", ip.Ip)
	}
	fmt.Println()
	return nil
}

func (c client) runContainer(args []string) error {
	pod, name := args[0], args[1]
	config, err := sandbox(name, nil)
	if err != nil {
		return err
	}
	created, err := c.CreateContainer(c.ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod, SandboxConfig: config,
		Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}, Command: args[2:], Linux: &cri.LinuxContainerConfig{}},
	})
	if err != nil {
		return err
	}
	if _, err := c.StartContainer(c.ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return err
	}
	fmt.Println(created.ContainerId)
	return nil
}

func (c client) exec(args []string) error {
	done, err := c.ExecSync(c.ctx, &cri.ExecSyncRequest{ContainerId: args[0], Cmd: args[1:], Timeout: int64(patience.Seconds())})
	if err != nil {
		return err
	}
	os.Stdout.Write(done.Stdout)
	os.Stderr.Write(done.Stderr)
	if done.ExitCode != 0 {
		return fmt.Errorf("%q ended with code %d", args[1:], done.ExitCode)
	}
	return nil
}

func (c client) forward(args []string) error {
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	answer, err := c.PortForward(c.ctx, &cri.PortForwardRequest{PodSandboxId: args[0], Port: []int32{int32(port)}})
	if err != nil {
		return err
	}
	address, err := url.Parse(answer.Url)
	if err != nil {
		return err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, address), []string{"0:" + args[1]}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- f.ForwardPorts() }()
	defer close(stop)
	select {
	case err := <-failed:
		return err
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-ready:
	}
	return getFrom(f)
}

// getFrom asks at the near end of the forwarded port.
func getFrom(f *portforward.PortForwarder) error {
	ports, err := f.GetPorts()
	if err != nil {
		return err
	}
	client := http.Client{Timeout: patience}
	response, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func (c client) pods([]string) error {
	list, err := c.ListPodSandbox(c.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, pod := range list.Items {
		fmt.Println(pod.Id, pod.Metadata.Name, pod.State)
	}
	return nil
}

func (c client) stopPod(args []string) error {
	_, err := c.StopPodSandbox(c.ctx, &cri.StopPodSandboxRequest{PodSandboxId: args[0]})
	return err
}

func (c client) removePod(args []string) error {
	_, err := c.RemovePodSandbox(c.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: args[0]})
	return err
}
