package keeper

import (
	"bytes"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzSupervisorSays: whatever packets a supervisor sends, each with some files, its keeper
// reads them without a panic, holds what it was told to hold and no other file, and answers.
func FuzzSupervisorSays(f *testing.F) {
	for _, s := range []string{
		"hello \n2", "keep config\n{}", "keep port *:80->80/tcp\n{}\x00drop port *:80->80/tcp\n", "all \n", "next \n", "done x\n", "keep", " ", "\n", "keep a\n1\x00keep a\n2\x00drop b\x00drop a",
	} {
		f.Add([]byte(s), uint(1))
		f.Add([]byte(s), uint(0))
	}
	f.Fuzz(func(t *testing.T, packets []byte, files uint) {
		null, err := os.Open(os.DevNull)
		require.NoError(t, err)
		defer null.Close()
		before := openFiles(t)
		ours, theirs, err := Pair()
		require.NoError(t, err)
		own, err := unix.PidfdOpen(os.Getpid(), 0)
		require.NoError(t, err)
		const longAgo = -1 // so that it starts no other supervisor
		k := &keeper{pair: theirs, twin: own, child: longAgo, items: map[string]item{}}
		fds := make([]int, files%3)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		for packet := range bytes.SplitSeq(packets, []byte{0}) {
			if len(packet) == 0 {
				continue // that is the end
			}
			head, _, _ := bytes.Cut(packet, []byte("\n"))
			verb, key, _ := bytes.Cut(head, []byte(" "))
			require.NoError(t, unix.Sendmsg(ours, packet, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL))
			k.listen()
			require.False(t, k.over)
			if string(verb) == Hello && len(fds) == 1 {
				continue
			}
			answer, err := Receive(ours)
			require.NoError(t, err)
			require.Equal(t, Done, answer.Verb)
			require.Equal(t, string(key), answer.Key)
		}
		held := 0
		for _, i := range k.items {
			held += len(i.files)
		}
		require.Equal(t, before+3+held, openFiles(t), "the pair, the pidfd, what it holds")
		for key := range k.items {
			k.drop(key)
		}
		unix.Close(ours)
		unix.Close(k.pair)
		unix.Close(k.twin)
		require.Equal(t, before, openFiles(t))
	})
}

// openFiles is how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	n := 0
	for _, fd := range fds {
		if i, err := strconv.Atoi(fd.Name()); err == nil && i > 2 {
			n++
		}
	}
	return n
}
