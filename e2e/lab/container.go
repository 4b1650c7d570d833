package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Container is a network namespace, and for a user's also the user namespace that
// owns it.
type Container struct {
	Netns string   // its path
	Enter []string // the command that enters it, to which another is appended
	UID   int      // who calls the plugin for it
	PID   int      // of the user's process in it; 0 as root
	end   func() error
}

// NewContainer makes a container: as root by ip netns under that name, for a user by
// a process of his in namespaces of its own.
func NewContainer(name string, rootless bool) (*Container, error) {
	if !rootless {
		out, err := exec.Command("sh", "-ec", `ip netns add "$0"; ip -n "$0" link set lo up`, name).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("making container %s: %w: %s", name, err, out)
		}
		path := "/run/netns/" + name
		return &Container{Netns: path, Enter: []string{"nsenter", "--net=" + path}, end: func() error {
			if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
				return fmt.Errorf("removing container %s: %w: %s", name, err, out)
			}
			return nil
		}}, nil
	}
	sleep := exec.Command("unshare", "-Urn", "sh", "-c", "ip link set lo up; exec sleep infinity")
	sleep.SysProcAttr = As(UID)
	if err := sleep.Start(); err != nil {
		return nil, fmt.Errorf("making container %s: %w", name, err)
	}
	pid := strconv.Itoa(sleep.Process.Pid)
	// It becomes sleep when all its namespaces are made and mapped.
	for deadline := time.Now().Add(time.Minute); program(pid) != "sleep"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = sleep.Process.Kill()
			_ = sleep.Wait()
			return nil, errors.New("making container " + name + ": unshare does not become sleep")
		}
	}
	proc := "/proc/" + pid + "/ns/"
	return &Container{
		Netns: proc + "net", Enter: []string{"nsenter", "--net=" + proc + "net", "--user=" + proc + "user"}, UID: UID, PID: sleep.Process.Pid,
		end: func() error {
			_ = sleep.Process.Kill()
			_ = sleep.Wait() // it was killed
			return nil
		},
	}, nil
}

func program(pid string) string {
	exe, _ := os.Readlink("/proc/" + pid + "/exe")
	return filepath.Base(exe)
}

// End takes the container away, with whatever it still has.
func (c *Container) End() error { return c.end() }

// As has a program run as a user, in a process group of its own.
func As(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Setpgid: true}
}
