package supervisor

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/rootless/keeper"
)

// FuzzKeeperHolds: whatever a keeper hands a new supervisor, that takes it over, or says why it
// cannot; no file stays open of what it has no use for, or when it cannot.
func FuzzKeeperHolds(f *testing.F) {
	for _, s := range []string{
		"hello \n2\x00all \n", "all \n", "hello \nx\x00keep config\n{}\x00keep alive\n\x00all \n",
		"hello \n2\x00keep port *:80->80/tcp\n" + `{"member":{"network":"a"},"sockets":[{}]}` + "\x00keep draining 1\n\x00keep way out\n" + `{"pid":1}` + "\x00keep names\n[\"10.0.0.1\"]\x00all \n",
		"keep a\n1\x00keep a\n2\x00hello \n2\x00hello \n3\x00dance \n\x00all \n", "keep draining x\n\x00keep\n", "keep config\nnull\x00hello \n\x00all \n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, packets []byte) {
		before := descriptors(t)
		ours, theirs, err := keeper.Pair()
		require.NoError(t, err)
		own, err := unix.PidfdOpen(os.Getpid(), 0)
		require.NoError(t, err)
		for packet := range bytes.SplitSeq(packets, []byte{0}) {
			if len(packet) > 0 && unix.Sendmsg(ours, packet, unix.UnixRights(own), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) != nil {
				break // no room
			}
		}
		unix.Close(ours)
		unix.Close(own)
		supervisors, held, err := takeOver(theirs, "x")
		if err == nil {
			readHeld(t, held)
			supervisors.forget()
		}
		require.Equal(t, before, descriptors(t))
	})
}

// readHeld reads all that was handed over, and closes its files.
func readHeld(t *testing.T, held items) {
	t.Helper()
	_, _ = decodeConfig(bytes.NewReader(held[keyConfig].Value))
	before := drainingOf(held) // it has those files, and has closed those that are of no use
	own, others := generationAfter(before)
	require.NotContains(t, others, own)
	for _, d := range before {
		d.pidfd.Close()
	}
	for key, m := range held {
		if !strings.HasPrefix(key, keyDraining) {
			keeper.CloseFiles(m.Files)
		}
		var p heldPort
		_ = json.Unmarshal(m.Value, &p)
		var d heldDriver
		_ = json.Unmarshal(m.Value, &d)
		_ = (&byDriver{}).know(m.Value)
	}
}

// descriptors are those of this process.
func descriptors(t *testing.T) map[int]bool {
	t.Helper()
	folder, err := os.Open("/proc/self/fd")
	require.NoError(t, err)
	names, err := folder.Readdirnames(0)
	require.NoError(t, err)
	all := map[int]bool{}
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd != int(folder.Fd()) {
			all[fd] = true
		}
	}
	require.NoError(t, folder.Close())
	return all
}
