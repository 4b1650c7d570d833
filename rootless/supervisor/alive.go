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

// Find looks for the supervisor of a private network whose files are all gone, among the
// processes, or its keeper. With the namespace gone it leaves by itself.
func Find(key conf.Key, netns record.Netns) *record.Process {
	title := titleOf(key, netns)
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		if b, err := os.ReadFile(line); err != nil || !isTwin(string(b), title) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(line)))
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
