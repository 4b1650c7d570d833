package supervisor

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// After its start a supervisor has two capabilities left (capabilities(7)) of the
// user namespace that owns the container's: CAP_NET_ADMIN, for IP_TRANSPARENT
// sockets, for the routes of clients and for the interface of a restarted driver,
// and CAP_NET_BIND_SERVICE, for clients whose port is below 1024. The driver gets
// rights of its own at execve(2), as uid 0 of that user namespace, out of the bounding
// set: so that set cannot be emptied, and no_new_privs cannot be set.
const forClients = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE

// Where uid 0 of the user namespace is not the user who called ADD but one of his
// subordinate uids (podman --userns=keep-id), the state folder belongs to another
// uid than ours, and these are needed as well: to use the driver's API socket in
// it, and to remove the record in the end.
const foreignFolder = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_SETUID

// A hub, whose user namespace nobody else is in, has threads of rootlessport move into
// its network namespace when there are ports.
const forHub = 1 << unix.CAP_SYS_ADMIN

// dropCapabilities gives up all others, in every thread, but for those that the tenant
// needs beside them. owner is the uid that the state folder has.
func dropCapabilities(owner int, beside uint32) error {
	if os.Geteuid() != 0 {
		return nil // a driver could not get any at execve(2) but by inheriting ours
	}
	kept := forClients | beside
	if owner != os.Geteuid() {
		kept |= foreignFolder
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: kept, Permitted: kept}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		// ENOTSUP: with cgo there may be threads that Go does not know.
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "giving up the supervisor's capabilities: %v", errno), "a binary that was built with cgo cannot do it, build with CGO_ENABLED=0")
	}
	return nil
}
