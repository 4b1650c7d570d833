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

// cleanMark is what a supervisor writes into BASE.alive when it has taken its rules out
// of the container's namespace. One that was killed meanwhile, or failed, does not.
const cleanMark = "clean"

func sayClean(alive *os.File) error {
	_, err := alive.WriteAt([]byte(cleanMark), 0)
	return err
}

// SaidClean says whether the last supervisor that held this lock left nothing behind.
func SaidClean(path string) bool {
	said, err := os.ReadFile(path)
	return err == nil && string(said) == cleanMark
}

// FindByNamespace looks for the supervisor of an attachment whose files are all
// gone, among the processes: by its command line and by the namespace that it has
// open. With the namespace gone it leaves by itself.
func FindByNamespace(key conf.Key, netnsPath string) *record.Process {
	want, err := os.Stat(netnsPath)
	if err != nil {
		return nil
	}
	title := strings.Join([]string{"", Role, key.String(), ""}, "\x00")
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		if b, err := os.ReadFile(line); err != nil || !strings.HasSuffix(string(b), title) {
			continue
		}
		folder := filepath.Dir(line)
		if st, err := os.Stat(fmt.Sprintf("%s/fd/%d", folder, netnsFD)); err != nil || !os.SameFile(st, want) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(folder))
		if p, err := record.ProcessOf(pid); err == nil {
			return &p
		}
	}
	return nil
}
