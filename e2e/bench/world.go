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

// A world is a machine of package lab, with what a benchmark needs besides. Everything in
// it goes with its first process.
const (
	worldVariable = "AMBI_BENCH_WORLD"
	stage         = "/run/bench"
	hostAddress   = "192.0.2.1"
	neighbour     = "neighbour" // 192.0.2.2, and the gateway
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

// furnish makes the machine, and gives it the programs and the user of the benchmark.
func furnish() error {
	checkout, err := os.Getwd()
	if err != nil {
		return err
	}
	tools := checkout + "/.tools/bin"
	if err := (lab.Machine{Checkout: checkout, Bin: checkout + "/bin", Tools: tools}).Furnish(); err != nil {
		return err
	}
	list := [][]string{
		{"mkdir", "-p", stage + "/bin", stage + "/etc"},
		{"mkdir", "-m", "1777", stage + "/tmp"},
		{"install", "-m", "0755", fmt.Sprintf("/proc/%d/exe", os.Getpid()), stage + "/bench"},
		{"install", "-m", "0755", "-t", stage + "/bin", "bin/ambi"}, // this build, whatever happens to the file meanwhile
		{"ln", "-s", lab.Stage + "/plugins", stage + "/tools"},
	}
	// Many short connections need many client ports, also while old ones wait.
	for _, setting := range []string{"net.ipv4.ip_local_port_range=10000 65535", "net.ipv4.tcp_tw_reuse=1"} {
		list = append(list, []string{"sysctl", "-qw", setting}, []string{"ip", "netns", "exec", neighbour, "sysctl", "-qw", setting})
	}
	if err := steps(list); err != nil {
		return err
	}
	return addUser()
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
