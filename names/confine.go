package names

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/confine"
)

// giveUpRights gives up what the server of a network as root does not need: every
// capability and the way to new ones; files, but for the state folder, where it writes, those
// that name the host's name servers, and this program, for its twin; and system calls. Its
// sockets it has already, and of others it makes those that ask name servers only. It stays
// uid 0, whose are the records.
func giveUpRights(stateDir string) error {
	files := confine.Files{Read: []string{"/etc", "/run", "/proc"}, Write: []string{stateDir}, Execute: []string{"/proc/self/exe"}}
	if path, err := filepath.EvalSymlinks(ResolvConf); err == nil {
		files.Read = append(files.Read, filepath.Dir(path))
	}
	return errors.Join(
		confine.Ordinary(),
		confine.Capabilities(0, 0),
		confine.NoNewPrivileges(),
		files.Only(),
		confine.AllowOnly(systemCalls()),
	)
}

func systemCalls() []confine.Call {
	calls := append(confine.Runtime(), confine.SocketsOf(unix.AF_INET, unix.AF_INET6))
	return append(calls, confine.Calls(
		// The state folder.
		unix.SYS_FLOCK, unix.SYS_FSYNC, unix.SYS_FTRUNCATE, unix.SYS_FCHMOD, unix.SYS_FCHMODAT,
		unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2,
		// The twin, and that it is this program again.
		unix.SYS_PIDFD_OPEN, unix.SYS_KILL, unix.SYS_WAIT4, unix.SYS_WAITID, unix.SYS_EXECVE,
	)...)
}
