package record_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/record"
)

// TestMain has the tests make namespaces, whoever runs them.
func TestMain(m *testing.M) { os.Exit(unit.RunTests(m)) }

// newNetns makes a network namespace and mounts it on path.
func newNetns(t *testing.T, path string) {
	t.Helper()
	n, err := unit.NewNetns()
	require.NoError(t, err)
	defer n.Close() // it stays where it is mounted
	require.NoError(t, n.MountOn(path))
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func openNetns(t *testing.T, path string) record.Netns {
	t.Helper()
	f, n, err := record.OpenNetns(path)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, path, n.Path)
	require.False(t, n.Gone())
	return n
}

func TestNetnsIdentity(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	newNetns(t, one)
	newNetns(t, two)
	first, second := openNetns(t, one), openNetns(t, two)
	own := openNetns(t, "/proc/self/ns/net")
	require.False(t, first.Same(second))
	require.False(t, first.Same(own))
	require.True(t, first.Same(openNetns(t, one)))

	f, err := os.Open(one)
	require.NoError(t, err)
	defer f.Close()
	require.True(t, first.Same(openNetns(t, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))), "another path to it")

	// Gone, with the file still there, without the file, with another in its place.
	require.NoError(t, unix.Unmount(one, unix.MNT_DETACH))
	require.True(t, first.Gone())
	require.NoError(t, os.Remove(one))
	require.True(t, first.Gone())
	newNetns(t, one)
	require.True(t, first.Gone())
	require.False(t, first.Same(openNetns(t, one)))
}

func TestNetnsGone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for _, path := range []string{"", "/nonexistent/netns", file + "/below-a-file", "/proc/2147483647/ns/net"} {
		require.True(t, record.Netns{Path: path, Dev: 4, Inode: 1}.Gone(), path)
	}
	require.False(t, record.Netns{}.Same(record.Netns{}), "nothing is known of either")
}

func TestOpenNetnsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for path, why := range map[string]string{
		"":                     "no such file or directory; give the path",
		"/nonexistent/netns":   "no such file or directory; give the path",
		file:                   "it is not a network namespace; give the path",
		t.TempDir():            "it is not a network namespace",
		"/dev/null":            "it is not a network namespace",
		"/proc/self/ns/mnt":    "it is not a network namespace",
		"/proc/self/ns/nosuch": "no such file",
	} {
		_, _, err := record.OpenNetns(path)
		var e *types.Error
		require.ErrorAs(t, err, &e, path)
		require.Equal(t, types.ErrInvalidEnvironmentVariables, e.Code)
		require.Contains(t, e.Msg, fmt.Sprintf("CNI_NETNS %q: ", path))
		require.Contains(t, e.Error(), why)
	}
}
