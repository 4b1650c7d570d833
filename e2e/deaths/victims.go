package deaths

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Who is killed.
const (
	Supervisor = "supervisor"
	Keeper     = "keeper"
	Driver     = "driver"
	Server     = "server" // for names, of a network of root's
	Twin       = "twin"
	Upgrade    = "upgrade" // a command, which may end what somebody else has carried
)

var errMissing = errors.New("somebody is missing")

// victims are the processes that are there, all of them or an error.
func (p *Plan) victims() (map[string]int, error) {
	there := map[string]int{}
	if p.Hub != "" {
		if err := ofHub(p.Hub, there); err != nil {
			return nil, err
		}
	}
	if p.Pair != "" {
		if err := ofPair(p.Pair, there); err != nil {
			return nil, err
		}
	}
	for _, pid := range there {
		if !lives(pid) {
			return nil, errMissing
		}
	}
	return there, nil
}

// ofHub asks a supervisor, or waits for the next one.
func ofHub(socket string, there map[string]int) error {
	conn, err := dialAsOwner(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("{\"op\":\"status\"}\n")); err != nil {
		return err
	}
	var said struct {
		Status struct {
			PID    int `json:"pid"`
			Keeper int `json:"keeper"`
			Driver struct {
				PID int `json:"pid"`
			} `json:"driver"`
		} `json:"status"`
	}
	if err := json.NewDecoder(conn).Decode(&said); err != nil {
		return err
	}
	s := said.Status
	if s.PID == 0 || s.Keeper == 0 || s.Driver.PID == 0 {
		return errMissing
	}
	there[Supervisor], there[Keeper] = s.PID, s.Keeper
	if s.Driver.PID != s.PID {
		there[Driver] = s.Driver.PID
	}
	return nil
}

// dialAsOwner connects to a socket as the user whose it is.
func dialAsOwner(socket string) (conn net.Conn, err error) {
	info, err := os.Stat(socket)
	if err != nil {
		return nil, err
	}
	uid := uintptr(info.Sys().(*syscall.Stat_t).Uid)
	err = onThread(func() error {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 { // of this thread alone
			return errno
		}
		conn, err = net.Dial("unix", socket)
		return err
	})
	return conn, err
}

func ofPair(file string, there map[string]int) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var pair []struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(b, &pair); err != nil || len(pair) != 2 {
		return errMissing
	}
	there[Server], there[Twin] = pair[0].PID, pair[1].PID
	return nil
}

// lives says that a process runs, and is none that only has to be waited for.
func lives(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 0
}

// all waits until everybody is there, and returns who that is.
func (p *Plan) all() (map[string]int, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		there, err := p.victims()
		if err == nil {
			return there, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("waited %v until all are there: %w", patience, err)
		}
	}
}
