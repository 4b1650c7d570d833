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
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambi-cni/ambi/conf"
)

// answer is what a binary said to VERSION, as it is remembered. The size and the
// time of modification tell whether it is still the same binary.
type answer struct {
	Path     string   `json:"path"`
	Size     int64    `json:"size"`
	ModTime  int64    `json:"modTime"` // nanoseconds
	Versions []string `json:"versions"`
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
	now, err := os.Stat(path)
	if err != nil || json.Unmarshal(raw, &known) != nil {
		return nil
	}
	if known.Path != path || known.Size != now.Size() || known.ModTime != now.ModTime().UnixNano() {
		return nil
	}
	return known.Versions
}

// probe asks the binary for the versions it speaks (verb VERSION) and remembers
// the answer.
func (c *Chain) probe(ctx context.Context, path string) ([]string, error) {
	before, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	info, err := invoke.GetVersionInfo(ctx, path, c.runner())
	if err != nil {
		return nil, fmt.Errorf("asking %s for its versions: %w", path, err)
	}
	versions := info.SupportedVersions()
	if err := c.remember(answer{path, before.Size(), before.ModTime().UnixNano(), versions}); err != nil {
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
		err = os.Rename(f.Name(), c.answerFile(a.Path))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func (c *Chain) answerFile(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(c.CacheDir, "versions-"+hex.EncodeToString(sum[:8])+".json")
}

// ours is the version of the network; a configuration without one is in 0.1.0.
func (c *Chain) ours() string {
	if v := c.Attachment.NetConf.CNIVersion; v != "" {
		return v
	}
	return "0.1.0"
}

// newest is the newest of the supported versions that is not newer than most and
// that we can convert results of; "" when there is none.
func newest(supported []string, most string) string {
	best := ""
	for _, v := range version.All.SupportedVersions() {
		if slices.Contains(supported, v) && atLeast(most, v) {
			best = v // All is in rising order
		}
	}
	return best
}

// incompatible is code 1: the delegate speaks nothing that we can ask it in.
func incompatible(path string, supported []string, most string) *types.Error {
	return conf.Errorf(types.ErrIncompatibleCNIVersion,
		"%s speaks CNI versions %s, none of them %s or older; set cniVersion of the network to one of them or install another version of the plugin",
		path, strings.Join(supported, ", "), most)
}
