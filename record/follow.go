package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Follower reads the records of a state folder again and again, each file only when it
// has changed. A change that was made before Records is called is seen by it: there is no
// watch that could be late, and none that could overflow.
type Follower struct {
	store *Store
	dir   Mark
	open  *os.File // the folder whose mark that is
	files map[string]followed
}

type followed struct {
	Mark
	record *Record // nil: it cannot be read
}

// Mark tells one state of a file from another.
type Mark struct {
	dev, inode uint64
	size       int64
	changed    unix.Timespec
	settled    bool
}

// Follow begins to follow a state folder.
func (s *Store) Follow() *Follower { return &Follower{store: s} }

// Changed says whether the folder is another one than at the last call of Records. It may
// be called beside itself, not beside Records.
func (f *Follower) Changed() bool {
	if f.open == nil {
		return true
	}
	// Not by its path, which takes three times as long. One that was moved away or removed has
	// another time of change, too.
	var st unix.Stat_t
	err := unix.Fstat(int(f.open.Fd()), &st)
	return err != nil || !markOfStat(&st, unix.Timespec{}).Same(f.dir) // the time is of no matter to Same
}

// Records are all that can be read.
func (f *Follower) Records() ([]*Record, error) {
	at := now()
	if f.open != nil {
		f.open.Close()
	}
	dir, err := os.Open(f.store.dir)
	if f.open = dir; err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if f.dir, err = markOf(int(dir.Fd()), "", at, unix.AT_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("state folder %s: %w", f.store.dir, err)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", f.store.dir, err)
	}
	files := make(map[string]followed, len(f.files))
	var records []*Record
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") || name[0] == '.' {
			continue
		}
		one, err := f.read(int(dir.Fd()), name, at)
		if err != nil {
			// Gone while we listed; or not to be read for now, such as without a free
			// descriptor, and then no change would tell when it is.
			f.dir.settled = f.dir.settled && errors.Is(err, fs.ErrNotExist)
			continue
		}
		files[name] = one
		if one.record != nil {
			records = append(records, one.record)
		}
	}
	f.files = files
	return records, nil
}

// read is one file, as it was read before if it is the same.
func (f *Follower) read(dir int, name string, at unix.Timespec) (followed, error) {
	m, err := markOf(dir, name, at, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return followed{}, err
	}
	if before, ok := f.files[name]; ok && m.Same(before.Mark) {
		return before, nil
	}
	path := f.store.dir + "/" + name
	r, err := load(path)
	if err != nil && !errors.Is(err, ErrUnreadable) {
		return followed{}, err
	}
	if err != nil || f.store.Path(r.Key, "json") != path {
		r = nil
	}
	return followed{m, r}, nil
}

// now is the time of the clock by which file systems date their files.
func now() (at unix.Timespec) {
	_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &at)
	return at
}

// MarkOf reads the mark of a file, or of what a link to one leads to, at this moment.
func MarkOf(path string) (Mark, error) { return markOf(unix.AT_FDCWD, path, now(), 0) }

// markOf reads the mark of a file, at a moment of before that. It is settled when a later
// change must have another time: the clock has gone on since the last one.
func markOf(dir int, name string, at unix.Timespec, flags int) (Mark, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, flags); err != nil {
		return Mark{}, err
	}
	return markOfStat(&st, at), nil
}

func markOfStat(st *unix.Stat_t, at unix.Timespec) Mark {
	m := Mark{dev: st.Dev, inode: st.Ino, size: st.Size, changed: st.Ctim}
	m.settled = m.changed.Sec < at.Sec || m.changed.Sec == at.Sec && m.changed.Nsec < at.Nsec
	return m
}

// Same says that nothing has happened to the file since the mark of before was taken,
// which must have been settled for that.
func (m Mark) Same(before Mark) bool {
	m.settled = true
	return m == before
}
