package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dirs are the places where the state folder of this process may be, best first: the
// one that is configured, if any, else DefaultDirs.
func Dirs(configured, xdgRuntimeDir string) []string {
	if configured != "" {
		return []string{configured}
	}
	uidMap, _ := os.ReadFile("/proc/self/uid_map") // none: our uid is everybody's
	return DefaultDirs(os.Geteuid(), xdgRuntimeDir, string(uidMap))
}

// DefaultDirs are the places of the state folder when the key stateDir is empty,
// best first: /run/ambi for uid 0, $XDG_RUNTIME_DIR/ambi, /tmp/ambi-<uid>. All
// are tmpfs on an ordinary host, so a reboot starts clean.
func DefaultDirs(euid int, xdgRuntimeDir, uidMap string) []string {
	var dirs []string
	if euid == 0 {
		dirs = append(dirs, "/run/ambi")
	}
	if filepath.IsAbs(xdgRuntimeDir) {
		dirs = append(dirs, filepath.Join(xdgRuntimeDir, "ambi"))
	}
	return append(dirs, "/tmp/ambi-"+strconv.Itoa(outerUID(euid, uidMap)))
}

// outerUID is our uid as the parent user namespace sees it (user_namespaces(7),
// uid_map): the fake root of two different users must not meet in /tmp/ambi-0.
func outerUID(euid int, uidMap string) int {
	for line := range strings.Lines(uidMap) {
		var inside, outside, length int
		if _, err := fmt.Sscan(line, &inside, &outside, &length); err == nil && euid >= inside && euid-inside < length {
			return outside + euid - inside
		}
	}
	return euid
}

// OpenFirst opens the first of the folders that can be ours. A folder that we may
// not make (uid 0 of a user namespace has no rights in /run) passes the turn to
// the next; one that is not as it should be is an error.
func OpenFirst(dirs []string) (*Store, error) {
	var errs []error
	for _, dir := range dirs {
		s, err := openWritable(dir)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) && !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if errors.Is(err, unix.EROFS) && used(dir) {
			break // mounted read-only since: by the next folder DEL would find nothing to do
		}
	}
	return nil, errors.Join(errs...)
}

// used says whether there are records in a folder.
func used(dir string) bool {
	records, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	return len(records) > 0
}

func openWritable(dir string) (*Store, error) {
	// Only the last element is ours to make: a missing XDG_RUNTIME_DIR stays missing.
	if _, err := os.Stat(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("state folder %s: %w", dir, err)
	}
	s, err := Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return nil, fmt.Errorf("state folder %s: %w", dir, err)
	}
	return s, nil
}
