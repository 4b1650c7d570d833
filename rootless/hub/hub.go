package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// Hub is the place of a hub, which may be there or not.
type Hub struct {
	Store *record.Store
	Name  string // of its folder, without the suffix
}

// State is what the one who started a hub writes down.
type State struct {
	Network    string         `json:"network"`
	Bridge     string         `json:"bridge"`     // its name
	Supervisor record.Process `json:"supervisor"` // the first, see Present
	Driver     driver.Command `json:"driver"`     // as it was asked for
	Plan       plan.Interface `json:"plan"`       // of the driver's interface
	// Private is the interface of the only member; nil of a shared network.
	Private *plan.Interface `json:"private,omitempty"`
	// Second says that the only member's default route is over another interface.
	Second bool   `json:"second,omitempty"`
	Cgroup string `json:"cgroup,omitempty"` // its folder, where its processes have one of their own
}

// The interfaces of a hub that is a private network.
const (
	DriverEnd = "tap0"  // of any hub
	HostEnd   = "veth0" // of the link to the only member
)

const suffix = ".hub"

// Of is the hub of a network for the user namespace in which we are: who is in another
// one has no rights over it.
func Of(store *record.Store, network string) (Hub, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &st); err != nil {
		return Hub{}, fmt.Errorf("our own user namespace: %w", err)
	}
	const longest = 180 // with the rest below NAME_MAX (255 bytes)
	if len(network) > longest {
		sum := sha256.Sum256([]byte(network))
		network = network[:100] + "~" + hex.EncodeToString(sum[:12])
	}
	return Hub{store, fmt.Sprintf("%s.%d", network, st.Ino)}, nil
}

// OfOne is the hub of one attachment with a private network.
func OfOne(store *record.Store, key conf.Key) Hub {
	return Hub{store, strings.TrimSuffix(filepath.Base(store.Path(key, "json")), ".json")}
}

// Private says whether it is one: no network's name has such a character.
func (h Hub) Private() bool { return strings.Contains(h.Name, "@") }

// List is every hub that has a folder in the state folder.
func List(store *record.Store) (hubs []Hub, err error) {
	entries, err := os.ReadDir(store.Dir())
	if err != nil {
		return nil, fmt.Errorf("hubs in state folder %s: %w", store.Dir(), err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && e.IsDir() {
			hubs = append(hubs, Hub{store, name})
		}
	}
	return hubs, nil
}

// State is what was started; nil where that cannot be read.
func (h Hub) State() *State {
	s, err := h.Load()
	if err != nil {
		return nil
	}
	return s
}

// Dir is the folder of the hub.
func (h Hub) Dir() string { return filepath.Join(h.Store.Dir(), h.Name+suffix) }

// Path of a file in it.
func (h Hub) Path(file string) string { return filepath.Join(h.Dir(), file) }

// There says whether the hub has a folder.
func (h Hub) There() bool {
	_, err := os.Lstat(h.Dir())
	return err == nil
}

// Lock makes the folder if it is missing, and waits for its lock until ctx ends. Who joins
// shares it; who starts the hub or ends it is alone. It is let go when the file is closed.
func (h Hub) Lock(ctx context.Context, how flock.How) (*os.File, error) {
	f, err := flock.Folder(ctx, h.Dir(), how)
	if err != nil {
		return nil, fmt.Errorf("folder of the hub: %w", err)
	}
	return f, nil
}

// Load reads what was started; fs.ErrNotExist where nothing was, or not to the end.
func (h Hub) Load() (*State, error) {
	b, err := os.ReadFile(h.Path("hub.json"))
	if err != nil {
		return nil, err
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", h.Path("hub.json"), err)
	}
	return &s, nil
}

// Save writes what was started. Only who is alone may.
func (h Hub) Save(s *State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	file, half := h.Path("hub.json"), h.Path("hub.json.tmp")
	if err := os.WriteFile(half, b, 0o600); err != nil {
		return fmt.Errorf("writing down the hub: %w", err)
	}
	return os.Rename(half, file)
}

// Running is what was started when the hub lives; nil when it does not, or nobody can say what
// it was. That the file cannot be read for now says neither.
func (h Hub) Running() (*State, error) {
	s, err := h.Load()
	var failed *fs.PathError
	switch {
	case errors.As(err, &failed) && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case err != nil || !h.Lives():
		return nil, nil
	}
	return s, nil
}

// Members are the records of those that are in the hub, or are coming: not of those that
// are leaving.
func (h Hub) Members() (members []*record.Record, err error) {
	var records []*record.Record
	if h.Private() {
		records, err = h.Store.Named(h.Name)
	} else {
		records, _, err = h.Store.List()
	}
	if err != nil {
		return nil, fmt.Errorf("members of the hub: %w", err)
	}
	for _, r := range records {
		if r.Hub == h.Name && r.State != record.Leaving {
			members = append(members, r)
		}
	}
	return members, nil
}

// Clear removes what is in the folder. Only who is alone may, when no process of the hub
// is left.
func (h Hub) Clear() error {
	entries, err := os.ReadDir(h.Dir())
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(h.Path(e.Name())))
	}
	return errors.Join(errs...)
}

// Remove removes the folder as well; those who wait for its lock make another.
func (h Hub) Remove() error { return os.RemoveAll(h.Dir()) }
