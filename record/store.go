package record

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
)

// ErrUnreadable is what Load returns, wrapped, for a record that is there but is
// empty, cut off, or not ours to understand.
var ErrUnreadable = errors.New("unreadable record")

// Store is a state folder.
type Store struct {
	dir string
}

// Open makes the state folder if it is missing and makes sure that it is ours:
// a folder and not a link, owned by our effective uid, open to us and closed to all others.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("making the parent of state folder %s: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making state folder %s: %w", dir, err)
	}
	return OpenExisting(dir)
}

// OpenExisting is Open for a folder that must be there already.
func OpenExisting(dir string) (*Store, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, fmt.Errorf("state folder %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, conf.Mendf(conf.Errorf(types.ErrIOFailure, "state folder %s is not a folder (a link is not followed)", dir), "remove it or set the key stateDir")
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%w: %w", fs.ErrPermission, conf.Mendf(
			conf.Errorf(types.ErrIOFailure, "state folder %s belongs to uid %d and not to uid %d", dir, st.Uid, os.Geteuid()),
			"set the key stateDir or XDG_RUNTIME_DIR"))
	case st.Mode&0o777 != 0o700: // closed to ourselves, it would be passed over with the records in it
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("closing state folder %s to others: %w", dir, err)
		}
	}
	return &Store{dir: dir}, nil
}

// Closed says that a folder is this user's and closed to others as it is: one that somebody else
// names is not to be changed ([OpenExisting]) before that is known.
func Closed(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&(unix.S_IFMT|0o777) == unix.S_IFDIR|0o700 && int(st.Uid) == os.Geteuid()
}

// Elsewhere says of an error of OpenExisting that nothing of ours is in that folder:
// it is not there, it is somebody else's, or it is no folder. After any other error
// there may be.
func Elsewhere(err error) bool {
	var notAFolder *types.Error
	closed := errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EPERM) // EPERM: ours, and could not be closed to others
	return errors.Is(err, fs.ErrNotExist) || closed || errors.As(err, &notAFolder)
}

// Dir is the absolute path of the state folder.
func (s *Store) Dir() string { return s.dir }

// Path of a file of the attachment: ext is "json", "lock", "alive", "busy", "log", or
// "sock" and "api", whose names are short: the name of a socket may have 108
// bytes with its folder (unix(7)), so it is used through a descriptor of the folder.
func (s *Store) Path(k conf.Key, ext string) string {
	if ext == "sock" || ext == "api" {
		return filepath.Join(s.dir, digest(base(k))+"."+ext)
	}
	return filepath.Join(s.dir, base(k)+"."+ext)
}

// longestBase keeps BASE.alive.tmp-… below NAME_MAX (255 bytes).
const longestBase = 200

// base is readable and unambiguous, since "@" is in no network name and no
// container ID (specification section 2); a long one is cut and hashed.
func base(k conf.Key) string {
	name := k.Network + "@" + k.ContainerID + "@" + k.IfName
	if len(name) <= longestBase {
		return name
	}
	return name[:100] + "@@" + digest(name)
}

func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:12])
}

// Save writes the record: temporary file in the same folder, fsync, rename.
func (s *Store) Save(r *Record) error {
	b, err := r.encode()
	if err != nil {
		return fmt.Errorf("record of %s: %w", r.Key, err)
	}
	if err := writeAtomically(s.Path(r.Key, "json"), b); err != nil {
		return fmt.Errorf("writing the record of %s: %w", r.Key, err)
	}
	r.saved = true
	return nil
}

func writeAtomically(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(temporary(path))) // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already after the rename
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// temporary is the pattern of the files that a writer killed in writeAtomically
// leaves.
func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
}

// Load reads the record of an attachment. The error is fs.ErrNotExist when there
// is none, ErrUnreadable when it is damaged.
func (s *Store) Load(k conf.Key) (*Record, error) {
	r, err := load(s.Path(k, "json"))
	if err == nil && r.Key != k {
		return nil, fmt.Errorf("%w: %s holds the record of %s", ErrUnreadable, s.Path(k, "json"), r.Key)
	}
	return r, err
}

// Named is the record in the file NAME.json; none when that is not there, or damaged.
func (s *Store) Named(name string) ([]*Record, error) {
	r, err := load(filepath.Join(s.dir, name+".json"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrUnreadable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []*Record{r}, nil
}

func load(path string) (*Record, error) {
	b, err := readNoFollow(path)
	if err != nil {
		return nil, err
	}
	r, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreadable, path, err)
	}
	return r, nil
}

func readNoFollow(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a link", ErrUnreadable, path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b strings.Builder
	if _, err := f.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return []byte(b.String()), nil
}

// List returns every readable record, and the keys of the files that are none,
// as their names tell them.
func (s *Store) List() (records []*Record, damaged []conf.Key, err error) {
	files, err := s.named(func(name string) bool { return strings.HasSuffix(name, ".json") })
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		r, err := load(f)
		if err == nil && s.Path(r.Key, "json") == f { // else a copy under another name, which Remove would miss
			records = append(records, r)
		} else if key, ok := keyOf(f); ok && !errors.Is(err, fs.ErrNotExist) { // else removed while we listed
			damaged = append(damaged, key)
		}
	}
	return records, damaged, nil
}

// Networks are the names of the networks that have any file in the folder: a
// record, a damaged one, or what a verb left that was killed before its record was
// there. A name that is too long for a file's is left out.
func (s *Store) Networks() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var networks []string
	for _, e := range entries {
		network, rest, ok := strings.Cut(strings.TrimPrefix(e.Name(), "."), "@")
		if ok && strings.Contains(rest, "@") && !strings.Contains(e.Name(), "@@") && !slices.Contains(networks, network) {
			networks = append(networks, network)
		}
	}
	return networks, nil
}

// Siblings are the keys of the container's other attachments. It reads the names in
// the folder, and a record only where a name was cut.
func (s *Store) Siblings(k conf.Key) ([]conf.Key, error) {
	paths, err := s.named(func(name string) bool { // false for most of a full host
		mayBe := strings.Contains(name, "@"+k.ContainerID+"@") || strings.Contains(name, "@@")
		return mayBe && strings.HasSuffix(name, ".json") && name[0] != '.'
	})
	var keys []conf.Key
	for _, path := range paths {
		key, whole := keyOf(path)
		if !whole {
			if r, err := load(path); err == nil {
				key = r.Key
			}
		}
		if key.ContainerID == k.ContainerID && key != k {
			keys = append(keys, key)
		}
	}
	return keys, err
}

// keyOf reads the key from a file name that base made; not from a cut one.
func keyOf(path string) (conf.Key, bool) {
	name := strings.TrimSuffix(filepath.Base(path), ".json")
	parts := strings.SplitN(name, "@", 3)
	if len(parts) != 3 || strings.Contains(name, "@@") {
		return conf.Key{}, false
	}
	return conf.Key{Network: parts[0], ContainerID: parts[1], IfName: parts[2]}, true
}

// named are the paths of the files whose names are wanted, sorted. Not filepath.Glob,
// which takes a folder that it cannot read for an empty one.
func (s *Store) named(wanted func(name string) bool) ([]string, error) {
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, name := range names {
		if wanted(name) {
			paths = append(paths, filepath.Join(s.dir, name))
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// Remove takes every file of the attachment away, the record last; the lock goes
// when it is released. Missing files are success.
func (s *Store) Remove(k conf.Key) error {
	begins := strings.TrimSuffix(filepath.Base(temporary(s.Path(k, "json"))), "*")
	files, err := s.named(func(name string) bool { return strings.HasPrefix(name, begins) })
	if err != nil {
		return err
	}
	var errs []error
	for _, ext := range []string{"sock", "api", "log", "alive", "busy"} {
		files = append(files, s.Path(k, ext))
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // and the record stays, or GC would not know that something is left
	}
	if err := os.Remove(s.Path(k, "json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lockPatience bounds the wait for another verb on the same attachment.
const lockPatience = 2 * time.Minute

// LockContext is a context to wait for a lock with, no longer than a verb is to wait.
func LockContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, lockPatience, conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "another verb is at work on this attachment since over %s", lockPatience), "try again later"))
}

// Lock waits until no other verb is at work on the attachment and no GC on the
// folder (see LockContext), and keeps others waiting until unlock is called. unlock
// removes the lock file when the attachment has no record, so that nothing is left behind.
func (s *Store) Lock(ctx context.Context, k conf.Key) (unlock func(), err error) {
	ctx, cancel := LockContext(ctx)
	defer cancel()
	folder, err := s.lockFolder(ctx, flock.Shared)
	if err != nil {
		return nil, err
	}
	path := s.Path(k, "lock")
	f, err := flock.Acquire(ctx, func() (*os.File, error) {
		return os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	})
	if err != nil {
		folder.Close()
		return nil, fmt.Errorf("lock of attachment %s: %w", k, err)
	}
	return func() {
		// After RemoveLock the name may be another verb's lock by now.
		if _, err := os.Lstat(s.Path(k, "json")); errors.Is(err, fs.ErrNotExist) && flock.Named(f) {
			os.Remove(path)
		}
		f.Close()
		folder.Close()
	}, nil
}

// LockAll keeps every other verb out of the folder, for GC (specification
// section 2, "GC": no ADD or DEL at the same time).
func (s *Store) LockAll(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := LockContext(ctx)
	defer cancel()
	folder, err := s.lockFolder(ctx, flock.Exclusive)
	if err != nil {
		return nil, err
	}
	return func() { folder.Close() }, nil
}

// lockFolder locks the folder itself, so that there is no lock file to leave.
func (s *Store) lockFolder(ctx context.Context, how flock.How) (*os.File, error) {
	f, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := flock.Lock(ctx, f, how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of state folder %s: %w", s.dir, err)
	}
	return f, nil
}

// Busy says whether a verb is at work on the attachment or a GC on the folder.
func (s *Store) Busy(k conf.Key) bool {
	for _, path := range []string{s.dir, s.Path(k, "lock")} {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		// A verb that comes at this very moment asks again.
		err = flock.Try(f, flock.Shared)
		f.Close()
		if errors.Is(err, flock.ErrHeld) {
			return true
		}
	}
	return false
}

// Sweep removes what a verb that was killed before its record was there left of the
// network: locks, and records half written. Only who holds LockAll may.
func (s *Store) Sweep(network string) error {
	files, err := s.named(func(name string) bool {
		return strings.HasPrefix(name, "."+network+"@") && strings.Contains(name, ".json.tmp-") ||
			strings.HasPrefix(name, network+"@") && (strings.HasSuffix(name, ".lock") || strings.HasSuffix(name, ".busy"))
	})
	errs := []error{err}
	for _, f := range files {
		if _, err := os.Lstat(strings.TrimSuffix(f, filepath.Ext(f)) + ".json"); err == nil {
			continue
		}
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// RemoveLock removes the lock file of an attachment that is no more. Only who holds
// it, and has nothing left to do, or LockAll, may.
func (s *Store) RemoveLock(k conf.Key) error {
	if err := os.Remove(s.Path(k, "lock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
