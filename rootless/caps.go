package rootless

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptCapabilities are what the supervisor uses all its life: IP_TRANSPARENT
// sockets and the routes of UDP clients inside the container's namespace
// (capabilities(7), CAP_NET_ADMIN). A restarted driver gets its own rights at
// execve(2), as uid 0 of its user namespace, from the bounding set.
const keptCapabilities = 1 << unix.CAP_NET_ADMIN

// dropCapabilities gives up all but keptCapabilities, in every thread.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keptCapabilities, Permitted: keptCapabilities}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
