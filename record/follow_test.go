package record_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// TestFollow: each change that is done when Records is called is seen, however fast one
// follows the other, and a file that has not changed is not read again.
func TestFollow(t *testing.T) {
	s := openStore(t)
	f := s.Follow()
	require.True(t, f.Changed())
	for i := range 50 {
		a, b := newRecord(t, conf.Key{Network: "web", ContainerID: fmt.Sprintf("a%d", i), IfName: "eth0"}, ""), newRecord(t, box, "")
		b.Result = json.RawMessage(fmt.Sprintf(`{"n":%d}`, i%10)) // of one length
		require.NoError(t, s.Save(a))
		require.NoError(t, s.Save(b))
		require.ElementsMatch(t, []string{a.ContainerID, "box"}, followedIDs(t, f))
		require.NoError(t, s.Save(b))
		b.Result = json.RawMessage(fmt.Sprintf(`{"n":%d}`, (i+1)%10))
		require.NoError(t, s.Save(b))
		require.True(t, f.Changed())
		for _, r := range followedRecords(t, f) {
			if r.ContainerID == "box" {
				require.JSONEq(t, string(b.Result), string(r.Result))
			}
		}
		require.NoError(t, s.Remove(a.Key))
		require.True(t, f.Changed())
		require.Equal(t, []string{"box"}, followedIDs(t, f))
	}
	require.Eventually(t, func() bool {
		followedRecords(t, f)
		return !f.Changed()
	}, time.Minute, time.Millisecond)
	before := followedRecords(t, f)
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "other"), nil, 0o600))
	require.True(t, f.Changed())
	require.Same(t, before[0], followedRecords(t, f)[0], "a record that is as it was")
}

// TestFollowWithoutDescriptors: a record that could not be opened is read as soon as it can
// be, although nothing has changed.
func TestFollowWithoutDescriptors(t *testing.T) {
	s := openStore(t)
	require.NoError(t, s.Save(newRecord(t, box, "")))
	f := s.Follow()
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	last := -1 // the gaps below it are filled
	for range 100 {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		last = max(last, fd)
	}
	few := limit
	few.Cur = uint64(last) + 2          // one is free, for the folder
	require.Eventually(t, func() bool { // what is remembered of a file counts when its clock has gone on
		st, err := os.Stat(s.Dir())
		var now unix.Timespec
		return err == nil && unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now) == nil && time.Unix(now.Unix()).After(st.ModTime())
	}, time.Minute, time.Millisecond)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	records, err := f.Records()
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, err)
	require.Empty(t, records)
	require.True(t, f.Changed())
	require.Equal(t, []string{"box"}, followedIDs(t, f))
}

// TestFollowWhatIsNone: what is no record is left out, until it is one.
func TestFollowWhatIsNone(t *testing.T) {
	s := openStore(t)
	f := s.Follow()
	r := newRecord(t, box, "")
	require.NoError(t, os.WriteFile(s.Path(r.Key, "json"), []byte("{"), 0o600))
	require.Empty(t, followedIDs(t, f))
	require.NoError(t, s.Save(r))
	require.Equal(t, []string{"box"}, followedIDs(t, f))
	require.NoError(t, os.RemoveAll(s.Dir()))
	require.True(t, f.Changed())
	_, err := f.Records()
	require.Error(t, err)
	_, err = record.Open(s.Dir())
	require.NoError(t, err)
	require.NoError(t, s.Save(r))
	require.Equal(t, []string{"box"}, followedIDs(t, f))
}

func followedRecords(t *testing.T, f *record.Follower) []*record.Record {
	t.Helper()
	records, err := f.Records()
	require.NoError(t, err)
	return records
}

func followedIDs(t *testing.T, f *record.Follower) (ids []string) {
	t.Helper()
	for _, r := range followedRecords(t, f) {
		ids = append(ids, r.ContainerID)
	}
	return ids
}
