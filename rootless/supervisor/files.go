package supervisor

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The open files of a driver, see driver.Files: so many that what they cost stays below 5 % of
// a processor, and so many for a shared network that a member with all flows that it may have
// (rootless/netns) leaves some to the others: 2 * (1280 + 2000 + 256) = 7072, with IPv6.
//
// They bound slirp4netns's memory, too, however little processor time it gets: it may have
// flows that connection tracking has forgotten, since the packet that ends them waits or is
// lost, but none without a file. One that has little under way is 20 KiB at most (giveBack in
// rootless/driver), so all are 7680 * 20 KiB = 150 MiB, and the program 4 MiB. What is sent
// and not taken yet comes on top: 192 KiB each way at most, for each connection.
const (
	mostOfPrivate = 4096
	mostOfShared  = 7680
)

// mostFiles is the bound for a hub's driver.
func mostFiles(h *Hub) uint64 {
	if h.Only != nil {
		return mostOfPrivate
	}
	return mostOfShared
}

// affordable is so many files, or as many as this process may have and give.
func affordable(files uint64) uint64 {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return files
	}
	return min(files, own.Max)
}

// openFiles is how many files a driver has open; 0 when that cannot be seen, and for one that
// is part of this process. Linux 6.2 and newer say it as the size of the folder.
func openFiles(pid int) int {
	if pid == os.Getpid() {
		return 0
	}
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	if st, err := os.Stat(folder); err == nil && st.Size() > 0 {
		return int(st.Size())
	}
	f, err := os.Open(folder)
	if err != nil {
		return 0
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	return len(names)
}
