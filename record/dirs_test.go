package record_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/record"
)

func TestDefaultDirs(t *testing.T) {
	const hostMap = "         0          0 4294967295\n"
	for _, tt := range []struct {
		name string
		euid int
		xdg  string
		maps string
		want string
	}{
		{"root", 0, "", hostMap, "[/run/ambi /tmp/ambi-0]"},
		{"root with a session", 0, "/run/user/0", hostMap, "[/run/ambi /run/user/0/ambi /tmp/ambi-0]"},
		{"a user", 1000, "/run/user/1000", hostMap, "[/run/user/1000/ambi /tmp/ambi-1000]"},
		{"a user without a session", 1000, "", hostMap, "[/tmp/ambi-1000]"},
		{"a relative XDG_RUNTIME_DIR", 1000, "run", hostMap, "[/tmp/ambi-1000]"},
		{"fake root", 0, "/run/user/1000", "0 1000 1\n", "[/run/ambi /run/user/1000/ambi /tmp/ambi-1000]"},
		{"fake root with subordinate uids", 0, "", "0 1000 1\n1 100000 65536\n", "[/run/ambi /tmp/ambi-1000]"},
		{"a subordinate uid", 33, "", "0 1000 1\n1 100000 65536\n", "[/tmp/ambi-100032]"},
		{"the first uid beyond a line", 1, "", "0 1000 1\n", "[/tmp/ambi-1]"},
		{"no mapping", 65534, "", "", "[/tmp/ambi-65534]"},
		{"garbage", 1000, "", "x y z\n\n0 1\n", "[/tmp/ambi-1000]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, fmt.Sprint(record.DefaultDirs(tt.euid, tt.xdg, tt.maps)))
		})
	}
}

func TestOpen(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "made", "on", "the", "way")
	_, err := record.OpenExisting(dir)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoDirExists(t, dir)

	s, err := record.Open(dir)
	require.NoError(t, err)
	require.Equal(t, dir, s.Dir())
	requireMode(t, dir, 0o700)
	_, err = record.Open(dir)
	require.NoError(t, err, "again")
}

func requireMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, want, st.Mode().Perm())
}

func TestOpenTightensTheMode(t *testing.T) {
	for _, mode := range []fs.FileMode{0o755, 0o777, 0o701, 0o500, 0} {
		dir := filepath.Join(t.TempDir(), "ambi")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.Chmod(dir, mode))
		_, err := record.Open(dir)
		require.NoError(t, err)
		requireMode(t, dir, 0o700)
	}
}

func TestOpenRefusesWhatIsNoFolder(t *testing.T) {
	real := t.TempDir()
	for name, plant := range map[string]func(path string) error{
		"a link":          func(path string) error { return os.Symlink(real, path) },
		"a dangling link": func(path string) error { return os.Symlink("/nonexistent", path) },
		"a file":          func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, next := filepath.Join(t.TempDir(), "ambi"), filepath.Join(t.TempDir(), "next")
			require.NoError(t, plant(dir))
			_, err := record.Open(dir)
			require.ErrorContains(t, err, dir+" is not a folder")
			require.ErrorContains(t, err, "stateDir")
			_, err = record.OpenFirst([]string{dir, next})
			require.Error(t, err, "an attack does not pass the turn to the next")
			require.NoDirExists(t, next)
		})
	}
}

func TestOpenRefusesAForeignOwner(t *testing.T) {
	dir := t.TempDir()
	if os.Chown(dir, 65534, 65534) != nil { // in a user namespace of one uid
		dir = "/"
	}
	_, err := record.Open(dir)
	require.ErrorIs(t, err, fs.ErrPermission)
	require.ErrorContains(t, err, "belongs to uid")
	require.ErrorContains(t, err, "stateDir")
}

func TestOpenFirst(t *testing.T) {
	missing, good := filepath.Join(t.TempDir(), "no", "parent"), filepath.Join(t.TempDir(), "ambi")
	s, err := record.OpenFirst([]string{missing, good, filepath.Join(t.TempDir(), "unused")})
	require.NoError(t, err)
	require.Equal(t, good, s.Dir())
	require.NoDirExists(t, filepath.Dir(missing), "a missing XDG_RUNTIME_DIR stays missing")

	_, err = record.OpenFirst([]string{missing, missing + "2"})
	require.ErrorContains(t, err, missing+":")
	require.ErrorContains(t, err, missing+"2:")
}

// TestElsewhere tells a folder with nothing of ours in it from one that could not be
// looked at.
func TestElsewhere(t *testing.T) {
	dir := t.TempDir()
	_, err := record.OpenExisting(dir + "/none")
	require.True(t, record.Elsewhere(err))
	require.NoError(t, os.Symlink(dir, dir+"/link"))
	_, err = record.OpenExisting(dir + "/link")
	require.True(t, record.Elsewhere(err))
	_, err = record.OpenExisting(dir + "/" + strings.Repeat("x", 300))
	require.Error(t, err)
	require.False(t, record.Elsewhere(err), err)
	require.NoError(t, os.Mkdir(dir+"/theirs", 0o700))
	if os.Chown(dir+"/theirs", 40001, 40001) == nil { // not in a user namespace of one uid
		_, err = record.OpenExisting(dir + "/theirs")
		require.True(t, record.Elsewhere(err), err)
		require.ErrorIs(t, err, fs.ErrPermission)
	}
}
