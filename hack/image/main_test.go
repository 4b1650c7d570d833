package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestImage reads the archive back as the image specification says: from its index to
// the programs, with every digest and size right.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	programs := map[string]string{"amd64": "a program of amd64", "arm": "one of arm"}
	var args []string
	for arch, text := range programs {
		path := filepath.Join(dir, arch)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		args = append(args, arch+"="+path)
	}
	out := filepath.Join(dir, "one.tar")
	require.NoError(t, run("localhost/ambi:v1", "v1.2.3", out, args))
	files := untar(t, read(t, out))
	require.JSONEq(t, `{"imageLayoutVersion":"1.0.0"}`, string(files["oci-layout"]))
	blob := func(d descriptor) []byte {
		content := files["blobs/sha256/"+d.Digest[len("sha256:"):]]
		require.Len(t, content, d.Size)
		require.Equal(t, d.Digest, digest(content))
		return content
	}
	var top, inner index
	require.NoError(t, json.Unmarshal(files["index.json"], &top))
	require.Len(t, top.Manifests, 1)
	require.Equal(t, "localhost/ambi:v1", top.Manifests[0].Annotations["io.containerd.image.name"])
	require.Equal(t, "v1", top.Manifests[0].Annotations["org.opencontainers.image.ref.name"])
	require.NoError(t, json.Unmarshal(blob(top.Manifests[0]), &inner))
	require.Len(t, inner.Manifests, 2)
	for _, d := range inner.Manifests {
		var m manifest
		var c config
		require.NoError(t, json.Unmarshal(blob(d), &m))
		require.NoError(t, json.Unmarshal(blob(m.Config), &c))
		require.Equal(t, *d.Platform, c.platform)
		require.Equal(t, []string{"/ambi"}, c.Config.Entrypoint)
		require.Equal(t, "v1.2.3", c.Config.Labels["org.opencontainers.image.version"])
		z, err := gzip.NewReader(bytes.NewReader(blob(m.Layers[0])))
		require.NoError(t, err)
		layer, err := io.ReadAll(z)
		require.NoError(t, err)
		require.Equal(t, []any{digest(layer)}, c.RootFS["diff_ids"])
		require.Equal(t, map[string][]byte{"ambi": []byte(programs[d.Platform.Architecture])}, untar(t, layer))
	}

	// In another order, at another time, from files of other names: the same bytes.
	other := filepath.Join(dir, "two.tar")
	require.NoError(t, os.Rename(filepath.Join(dir, "arm"), filepath.Join(dir, "x")))
	require.NoError(t, run("localhost/ambi:v1", "v1.2.3", other, []string{"arm=" + filepath.Join(dir, "x"), "amd64=" + filepath.Join(dir, "amd64")}))
	require.Equal(t, read(t, out), read(t, other))
}

func read(t *testing.T, path string) []byte {
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return content
}

// untar are the files of an archive; what tells when, where and by whom it was made is an
// error.
func untar(t *testing.T, archive []byte) map[string][]byte {
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		require.Zero(t, h.ModTime.Unix()+int64(h.Uid)+int64(h.Gid), h.Name)
		require.Empty(t, h.Uname+h.Gname)
		files[h.Name], err = io.ReadAll(r)
		require.NoError(t, err)
	}
}
