package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/lab"
)

// A world is new network, mount and process namespaces: a host of its own with a
// neighbour host one veth away. Everything in it goes with its first process.
const (
	worldVariable = "AMBI_BENCH_WORLD"
	stage         = "/run/bench"
	hostAddress   = "192.0.2.1"
	neighbour     = "neighbour" // 192.0.2.2, and the gateway 192.0.2.254
)

// The user of the forwarders: any uid without rights.
const userID = lab.UID

// inWorld runs work in a world: the process runs itself again in a new machine.
func inWorld(work func() error) error {
	if os.Getenv(worldVariable) != "" {
		raiseLimit()
		if err := furnish(); err != nil {
			return fmt.Errorf("making the world: %w", err)
		}
		return work()
	}
	if os.Geteuid() != 0 {
		return errors.New("this makes network namespaces and has to be run as root")
	}
	warnIfBusy()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The world goes with this process, however that goes.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	runtime.LockOSThread() // Pdeathsig means the thread
	cmd := lab.Command(append([]string{self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), worldVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // of the thread
	if err = cmd.Start(); err == nil {
		defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode()) // it has said why
	}
	return err
}

// furnish makes folders, programs, users and the neighbour.
func furnish() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, f := range []func() error{
		func() error { return steps(foldersOf(self)) },
		addUser,
		func() error { return steps(hostNetwork()) },
	} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func foldersOf(self string) [][]string {
	user := fmt.Sprint(userID)
	return [][]string{
		{"mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run"},
		{"mkdir", "-p", stage + "/bin", stage + "/tools", stage + "/etc", "/run/user/" + user, "/var/lib/cni"},
		{"install", "-m", "0755", self, stage + "/bench"},
		{"install", "-m", "0755", "-t", stage + "/bin", "bin/ambi"}, // this build, whatever happens to the file meanwhile
		{"mount", "--bind", ".tools/bin", stage + "/tools"},
		{"mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/var/lib/cni"},
		{"mkdir", "-m", "1777", "/var/lib/cni/results", stage + "/tmp"},
		{"chown", user + ":" + user, "/run/user/" + user},
		{"chmod", "0700", "/run/user/" + user},
	}
}

// addUser gives the user a name and subordinate ids, in this world only.
func addUser() error {
	for file, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("bench:x:%d:%d::/run/user/%d:/bin/sh\n", userID, userID, userID),
		"/etc/group":  fmt.Sprintf("bench:x:%d:\n", userID),
		"/etc/subuid": "bench:1000000:65536\n",
		"/etc/subgid": "bench:1000000:65536\n",
	} {
		old, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		own := stage + "/etc/" + filepath.Base(file)
		if err := os.WriteFile(own, append(old, line...), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(own, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting over %s: %w", file, err)
		}
	}
	return nil
}

func hostNetwork() [][]string {
	list := [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "netns", "add", neighbour},
		{"ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", neighbour},
		{"ip", "addr", "add", hostAddress + "/24", "dev", "uplink"},
		{"ip", "link", "set", "uplink", "up"},
		{"ip", "-n", neighbour, "link", "set", "lo", "up"},
		{"ip", "-n", neighbour, "addr", "add", "192.0.2.2/24", "dev", "eth0"},
		{"ip", "-n", neighbour, "addr", "add", "192.0.2.254/24", "dev", "eth0"},
		{"ip", "-n", neighbour, "link", "set", "eth0", "up"},
		{"ip", "route", "add", "default", "via", "192.0.2.254"},
	}
	// Many short connections need many client ports, also while old ones wait.
	for _, setting := range []string{"net.ipv4.ip_local_port_range=10000 65535", "net.ipv4.tcp_tw_reuse=1"} {
		list = append(list, []string{"sysctl", "-qw", setting}, []string{"ip", "netns", "exec", neighbour, "sysctl", "-qw", setting})
	}
	return list
}

// steps runs commands one after the other until one fails.
func steps(list [][]string) error {
	for _, argv := range list {
		if err := step(argv...); err != nil {
			return err
		}
	}
	return nil
}

func step(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", argv, err, strings.TrimSpace(string(out)))
	}
	return nil
}
