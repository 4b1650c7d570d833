package memory

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProgramPages(t *testing.T) {
	const program = "/opt/cni/bin/ambi"
	for line, want := range map[string]bool{
		"00400000-00a10000 r-xp 00000000 fe:00 1                                  " + program: true,
		"00a10000-01000000 r--p 00610000 fe:00 1                                  " + program: true,
		"01000000-01050000 rw-p 00c00000 fe:00 1                                  " + program: false, // variables
		"7f0000000000-7f0000001000 r--p 00000000 fe:00 2                          /lib/other": false,
		"7ffd1000-7ffd2000 r-xp 00000000 00:00 0                                  [vdso]":     false,
		"7f0000000000-7f0000001000 ---p 00000000 00:00 0 ":                                    false,
		"": false,
	} {
		_, _, ok := programPages(line, program)
		require.Equal(t, want, ok, line)
	}
	start, end, _ := programPages("00400000-00a10000 r-xp 00000000 fe:00 1 "+program, program)
	require.Equal(t, []uintptr{0x400000, 0xa10000}, []uintptr{start, end})
}
