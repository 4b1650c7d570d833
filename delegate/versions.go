package delegate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// answer is what a binary said to VERSION, as it is remembered.
type answer struct {
	Binary   binary   `json:"binary"`
	Versions []string `json:"versions"`
}

// binary tells a file from whatever was or will be at its path. Packages set the
// time of modification as they like; the time of the change of the inode is the
// kernel's.
type binary struct {
	Path    string `json:"path"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"modTime"` // nanoseconds
	Changed int64  `json:"changed"` // nanoseconds
}

func binaryAt(path string) (binary, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return binary{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return binary{path, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// remembered returns the versions that the binary at path is known to speak, or
// nil. Whatever is wrong with the file, the binary can be asked again.
func (c *Chain) remembered(path string) []string {
	if c.CacheDir == "" {
		return nil
	}
	raw, err := os.ReadFile(c.answerFile(path))
	if err != nil {
		return nil
	}
	var known answer
	now, err := binaryAt(path)
	if err != nil || json.Unmarshal(raw, &known) != nil || known.Binary != now {
		return nil
	}
	return known.Versions
}

// probe asks the binary for the versions it speaks (verb VERSION) and remembers
// the answer.
func (c *Chain) probe(ctx context.Context, path string) ([]string, error) {
	before, err := binaryAt(path)
	if err != nil {
		return nil, err
	}
	info, err := invoke.GetVersionInfo(ctx, path, c.runner())
	if err != nil {
		return nil, fmt.Errorf("asking %s for its versions: %w", path, err)
	}
	versions := info.SupportedVersions()
	if err := c.remember(answer{before, versions}); err != nil {
		c.log().Warn("versions of a delegate not remembered", "path", path, "error", err)
	}
	return versions, nil
}

// remember writes an answer beside its place and renames it, so that a reader
// never sees half of one. It is not synced: a lost answer costs one question.
func (c *Chain) remember(a answer) error {
	if c.CacheDir == "" {
		return nil
	}
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.CacheDir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(c.CacheDir, ".versions-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), c.answerFile(a.Binary.Path))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func (c *Chain) answerFile(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(c.CacheDir, "versions-"+hex.EncodeToString(sum[:8])+".cache")
}

// ours is the version of the network; a configuration without one is in 0.1.0.
func (c *Chain) ours() string {
	if v := c.Attachment.NetConf.CNIVersion; v != "" {
		return v
	}
	return "0.1.0"
}

// nearest is the version to ask a delegate in: the newest that it speaks and that
// is not newer than ours, else the oldest that is newer (the firewall plugin of
// 1.9.1 has nothing before 0.4.0). Results are converted either way. It is "" when
// there is none that we know.
func nearest(supported []string, ours string) string {
	best := ""
	for _, v := range version.All.SupportedVersions() { // in rising order
		if !slices.Contains(supported, v) {
			continue
		}
		if best == "" || atLeast(ours, v) {
			best = v
		}
	}
	return best
}

// incompatible is code 1: the delegate speaks nothing that we know.
func incompatible(path string, supported []string) *types.Error {
	return conf.Mendf(conf.Errorf(types.ErrIncompatibleCNIVersion, "%s speaks CNI versions %q, of which ambi knows none", path, supported), "install another version of the plugin")
}
