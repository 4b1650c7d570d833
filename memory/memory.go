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
	debug.FreeOSMemory()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if start, end, ok := programPages(lines.Text(), program); ok {
			// Best effort: the kernel reads a page again when it is needed (madvise(2),
			// MADV_DONTNEED of a file mapping).
			_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED)
		}
	}
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
