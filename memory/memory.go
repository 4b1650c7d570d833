package memory

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// GiveBack leaves resident what an idle process touches: not the garbage
// of its start, and not the pages of the program that only the start ran.
func GiveBack() {
	ranges := ownPages()
	debug.FreeOSMemory()
	// Last of all, or the pages that the list and the garbage took would be there again.
	for _, r := range ranges {
		// Best effort: the kernel reads a page again when it is needed (madvise(2),
		// MADV_DONTNEED of a file mapping).
		_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, r[0], r[1]-r[0], unix.MADV_DONTNEED)
	}
}

// ownPages are where the program's code and constants are, from one address to another.
func ownPages() (ranges [][2]uintptr) {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if start, end, ok := programPages(lines.Text(), program); ok {
			ranges = append(ranges, [2]uintptr{start, end})
		}
	}
	return ranges
}

// programPages reads a line of /proc/self/maps (proc_pid_maps(5)) and says whether it
// is code or constants of the program: nothing in it was written, so nothing is lost.
func programPages(line, program string) (start, end uintptr, ok bool) {
	var mode string
	if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &mode); err != nil {
		return 0, 0, false
	}
	return start, end, strings.HasSuffix(line, " "+program) && (mode == "r-xp" || mode == "r--p")
}
