package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/keeper"
)

// LockAlive takes the lock that the supervisor and the driver hold together, by
// inheriting the descriptor, for as long as one of them lives (flock(2)).
func LockAlive(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the supervisor: %w", err)
	}
	if err := flock.Try(f, flock.Exclusive); err != nil {
		f.Close()
		return nil, conf.Errorf(types.ErrTryAgainLater, "another supervisor of this attachment is still there (%s is locked): call DEL first", path)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of the supervisor: %w", err)
	}
	return f, nil
}

// Title is the argument by which people, and Find, know a supervisor's process: of a private
// network the attachment and its namespace, else the network.
func (h *Hub) Title() string {
	if h.Only != nil {
		return titleOf(h.Only.Key, h.Only.Netns)
	}
	return h.Network
}

func titleOf(key conf.Key, netns record.Netns) string {
	return fmt.Sprintf("%s net:[%d]", key, netns.Inode)
}

// Seen is a supervisor as others see it.
type Seen struct {
	PID   int
	Title string
	Hub   string // its folder's path, without the suffix
}

// Processes are this user's supervisors whose log, their standard error, we may see: it is in the
// folder of the hub. That is what they say of themselves, as anybody may: see Trusted.
func Processes() (all []Seen) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, line := range lines {
		b, err := os.ReadFile(line)
		words := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if err != nil || len(words) != 3 || words[1] != Role {
			continue
		}
		folder := filepath.Dir(line)
		log, err := os.Readlink(folder + "/fd/2")
		hub, isLog := strings.CutSuffix(strings.TrimSuffix(log, " (deleted)"), ".hub/log")
		if err == nil && isLog && uidOf(folder) == os.Geteuid() {
			pid, _ := strconv.Atoi(filepath.Base(folder))
			all = append(all, Seen{pid, words[2], hub})
		}
	}
	return all
}

// uidOf is the real uid of a process; -1 when it cannot be read.
func uidOf(folder string) int {
	b, _ := os.ReadFile(folder + "/status")
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Uid:" {
			if uid, err := strconv.Atoi(fields[1]); err == nil {
				return uid
			}
		}
	}
	return -1
}

// Trusted says that what it says of its state folder may be followed. A container's process may be
// of this user and call itself what it likes, and its files are others of the same path: so it has
// to see the files that we see, and the folder has to be this user's and closed to others.
func (s Seen) Trusted() bool {
	own, err := os.Stat("/proc/self/ns/mnt")
	its, itsErr := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", s.PID))
	return err == nil && itsErr == nil && os.SameFile(own, its) && record.Closed(s.StateDir())
}

// StateDir is the state folder that it works in.
func (s Seen) StateDir() string { return filepath.Dir(s.Hub) }

// Network is the network that it is of.
func (s Seen) Network() string {
	network, _, _ := strings.Cut(s.Title, "/") // no network's name has one
	return network
}

// Find looks for the supervisor of a private network whose files are all gone, among the
// processes, or its keeper. With the namespace gone it leaves by itself.
func Find(key conf.Key, netns record.Netns) *record.Process {
	title := titleOf(key, netns)
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		folder := filepath.Dir(line)
		if b, err := os.ReadFile(line); err != nil || !isTwin(string(b), title) || uidOf(folder) != os.Geteuid() {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(folder))
		if p, err := record.ProcessOf(pid); err == nil && p.Alive() {
			return &p
		}
	}
	return nil
}

func isTwin(cmdline, title string) bool {
	for _, role := range []string{Role, keeper.Role} {
		if strings.HasSuffix(cmdline, strings.Join([]string{"", role, title, ""}, "\x00")) {
			return true
		}
	}
	return false
}
