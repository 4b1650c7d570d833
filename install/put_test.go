package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func open(t *testing.T) folder {
	d, err := openFolder(context.Background(), filepath.Join(t.TempDir(), "net.d"))
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func (d folder) text(t *testing.T, name string) string {
	content, err := os.ReadFile(d.path(name))
	require.NoError(t, err)
	return string(content)
}

// The two folders may be one, by whatever name: it is not waited for that we let it go.
func TestOneFolderByTwoNames(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "net.d")
	require.NoError(t, os.Symlink(dir, link))
	for _, other := range []string{dir, dir + "/", link} {
		n := Node{BinDir: dir, ConfDir: other, Tell: t.Logf}
		require.NoError(t, n.Binary(t.Context(), "/proc/self/exe", true, func() error {
			return n.Conflist(t.Context(), "10-web.conflist", []byte(`{"cniVersion":"1.0.0","name":"web","plugins":[{"type":"ambi"}]}`))
		}))
		require.NoError(t, n.Remove(t.Context()))
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

// What its owner wrote since we read the file is in place afterwards, and not our edition
// of what was there before.
func TestSwapOfWhatIsNewer(t *testing.T) {
	d := open(t)
	require.NoError(t, os.WriteFile(d.path("a"), []byte("newer"), 0o644))
	swapped, err := d.swap("a", []byte("old"), []byte("old, edited"), look{0o644, -1, -1})
	require.NoError(t, err)
	require.False(t, swapped)
	require.Equal(t, "newer", d.text(t, "a"))
	swapped, err = d.swap("a", []byte("newer"), []byte("newer, edited"), look{0o600, -1, -1})
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, "newer, edited", d.text(t, "a"))
	st, err := os.Stat(d.path("a"))
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm())
	require.NoFileExists(t, d.path(newName))
	swapped, err = d.swap("gone", nil, []byte("x"), look{0o600, -1, -1})
	require.NoError(t, err)
	require.False(t, swapped)
	require.NoFileExists(t, d.path("gone"))
}

// An owner who replaces the file as fast as it can loses no version to an editor who does
// the same: the last one is there in the end, edited or not.
func TestSwapWhileTheOwnerReplaces(t *testing.T) {
	d := open(t)
	const last = 3000
	write := func(n int) {
		require.NoError(t, os.WriteFile(d.path("owner"), fmt.Appendf(nil, "%d", n), 0o644))
		require.NoError(t, os.Rename(d.path("owner"), d.path("a")))
	}
	write(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range last {
			write(n + 1)
		}
	}()
	swaps := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		old, err := os.ReadFile(d.path("a"))
		require.NoError(t, err)
		if bytes.HasSuffix(old, []byte(" edited")) {
			continue
		}
		swapped, err := d.swap("a", old, append(bytes.Clone(old), " edited"...), look{0o644, -1, -1})
		require.NoError(t, err)
		if swapped {
			swaps++
		}
	}
	require.NotZero(t, swaps)
	require.Equal(t, fmt.Sprint(last), strings.TrimSuffix(d.text(t, "a"), " edited"))
}

// What a killed installer left is taken away by the next, which waits for one that lives.
func TestOpenFolder(t *testing.T) {
	d := open(t)
	require.NoError(t, os.WriteFile(d.path(newName), []byte("half"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := openFolder(ctx, d.Name())
	require.ErrorContains(t, err, "another ambi install is at work there")
	require.FileExists(t, d.path(newName))
	d.Close()
	again, err := openFolder(context.Background(), d.Name())
	require.NoError(t, err)
	defer again.Close()
	require.NoFileExists(t, d.path(newName))
}
