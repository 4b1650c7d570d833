package record_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

var box = conf.Key{Network: "web", ContainerID: "box", IfName: "eth0"}

func openStore(t *testing.T) *record.Store {
	t.Helper()
	s, err := record.Open(filepath.Join(t.TempDir(), "ambi"))
	require.NoError(t, err)
	return s
}

func newRecord(t *testing.T, k conf.Key, members string) *record.Record {
	t.Helper()
	n, err := conf.Parse([]byte(`{"cniVersion":"1.1.0","name":"` + k.Network + `","type":"ambi"` + members + `}`))
	require.NoError(t, err)
	a, err := conf.NewAttachment(conf.Env{ContainerID: k.ContainerID, IfName: k.IfName, NetnsPath: "/run/netns/box",
		Args: "IP=10.0.2.7", Path: []string{"/opt/cni/bin"}}, n)
	require.NoError(t, err)
	return record.New(a, conf.ModeRootless, record.Netns{Path: "/run/netns/box", Dev: 4, Inode: 4026532000})
}

func save(t *testing.T, s *record.Store, k conf.Key) {
	t.Helper()
	require.NoError(t, s.Save(newRecord(t, k, "")))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// files are the names in the state folder.
func files(t *testing.T, s *record.Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.Dir())
	require.NoError(t, err)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

func TestSaveAndLoad(t *testing.T) {
	s := openStore(t)
	const members = `,"delegates":[{"type":"bridge","big":18446744073709551617,"html":"<&>"}],` +
		`"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80}]}`
	r := newRecord(t, box, members)
	require.False(t, r.Saved())
	require.Equal(t, record.Adding, r.State)
	require.NoError(t, s.Save(r))
	require.True(t, r.Saved())

	r.State = record.Ready
	r.Supervisor = &record.Process{PID: 7, StartTime: 1 << 60}
	r.Result = json.RawMessage(`{"cniVersion":"1.1.0"}`)
	require.NoError(t, s.Save(r))
	got, err := s.Load(box)
	require.NoError(t, err)
	require.Equal(t, r, got)
	require.Contains(t, string(got.Config), `"big":18446744073709551617,"html":"<&>"`)
	require.Equal(t, []string{"web@box@eth0.json"}, files(t, s))

	st, err := os.Stat(s.Path(box, "json"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode())
}

// DEL works with what ADD was asked for.
func TestRecordHoldsTheAttachment(t *testing.T) {
	s := openStore(t)
	require.NoError(t, s.Save(newRecord(t, box, `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80}]}`)))
	r, err := s.Load(box)
	require.NoError(t, err)
	a, err := r.Attachment()
	require.NoError(t, err)
	require.Equal(t, box, a.Key)
	require.Equal(t, "/run/netns/box", a.NetnsPath)
	require.Equal(t, []string{"/opt/cni/bin"}, a.Path)
	require.Equal(t, "[10.0.2.7/32]", fmt.Sprint(a.IPs))
	require.Equal(t, r.Ports, a.Ports)
	require.Equal(t, "[*:8080->80/tcp]", fmt.Sprint(a.Ports))
}

func TestAttachmentOfAnOlderConfiguration(t *testing.T) {
	r := newRecord(t, box, "")
	r.Config = json.RawMessage(`{"name":"web","portmap":{"noLongerAKey":1,"snat":false},"noLongerAKey":1}`)
	a, err := r.Attachment()
	require.ErrorContains(t, err, "web/box/eth0")
	require.ErrorContains(t, err, "portmap.noLongerAKey")
	require.False(t, a.NetConf.Portmap.SNAT, "what can be read is read")
}

func TestLoadMissing(t *testing.T) {
	_, err := openStore(t).Load(box)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NotErrorIs(t, err, record.ErrUnreadable)
}

// unreadable are ways to damage the record of box.
var unreadable = map[string]func(t *testing.T, s *record.Store, path string){
	"empty":   func(t *testing.T, _ *record.Store, path string) { write(t, path, "") },
	"garbage": func(t *testing.T, _ *record.Store, path string) { write(t, path, "\x00\xff{") },
	"no object": func(t *testing.T, _ *record.Store, path string) {
		write(t, path, "[]")
	},
	"cut off": func(t *testing.T, s *record.Store, path string) {
		save(t, s, box)
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(path, st.Size()/2))
	},
	"another layout": func(t *testing.T, _ *record.Store, path string) {
		write(t, path, `{"version":2,"network":"web","containerID":"box","ifName":"eth0"}`)
	},
	"no mode": func(t *testing.T, _ *record.Store, path string) {
		write(t, path, `{"version":1,"network":"web","containerID":"box","ifname":"eth0","mode":"bogus"}`)
	},
	"no delegate": func(t *testing.T, _ *record.Store, path string) {
		write(t, path, `{"version":1,"network":"web","containerID":"box","ifname":"eth0","mode":"root","delegates":[17]}`)
	},
	"no key": func(t *testing.T, _ *record.Store, path string) { write(t, path, `{"version":1}`) },
	"of another attachment": func(t *testing.T, s *record.Store, path string) {
		other := conf.Key{Network: "web", ContainerID: "other", IfName: "eth0"}
		save(t, s, other)
		require.NoError(t, os.Rename(s.Path(other, "json"), path))
	},
	"a link": func(t *testing.T, s *record.Store, path string) {
		save(t, s, box)
		target := filepath.Join(t.TempDir(), "elsewhere")
		require.NoError(t, os.Rename(path, target))
		require.NoError(t, os.Symlink(target, path))
	},
	"a dangling link": func(t *testing.T, _ *record.Store, path string) {
		require.NoError(t, os.Symlink("/nonexistent/record", path))
	},
	"a folder": func(t *testing.T, _ *record.Store, path string) { require.NoError(t, os.Mkdir(path, 0o700)) },
	"a pipe":   func(t *testing.T, _ *record.Store, path string) { require.NoError(t, unix.Mkfifo(path, 0o600)) },
}

func TestLoadUnreadable(t *testing.T) {
	for name, damage := range unreadable {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			damage(t, s, s.Path(box, "json"))
			_, err := s.Load(box)
			require.ErrorIs(t, err, record.ErrUnreadable)
			require.NotErrorIs(t, err, fs.ErrNotExist)
			require.ErrorContains(t, err, s.Path(box, "json"))

			records, damaged, err := s.List()
			require.NoError(t, err)
			require.Empty(t, records)
			require.Equal(t, []conf.Key{box}, damaged, "GC finds it")

			require.NoError(t, s.Remove(box))
			require.Empty(t, files(t, s))
		})
	}
}

// A damaged record is replaced, and what a link points at stays.
func TestSaveOverADamagedRecord(t *testing.T) {
	s := openStore(t)
	target := filepath.Join(t.TempDir(), "elsewhere")
	write(t, target, "precious")
	require.NoError(t, os.Symlink(target, s.Path(box, "json")))
	save(t, s, box)
	_, err := s.Load(box)
	require.NoError(t, err)
	b, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
}

// A reader in a loop sees whole records only, while a writer replaces them by
// longer and shorter ones.
func TestReplacingIsAtomic(t *testing.T) {
	s := openStore(t)
	versions := []*record.Record{newRecord(t, box, ""), newRecord(t, box, `,"example.org/padding":"`+strings.Repeat("x", 64<<10)+`"`)}
	require.NoError(t, s.Save(versions[0]))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := s.Load(box)
				if err != nil || !slices.ContainsFunc(versions, func(v *record.Record) bool { return string(v.Config) == string(r.Config) }) {
					t.Errorf("half a record: %v", err)
					return
				}
			}
		})
	}
	for i := range 100 {
		require.NoError(t, s.Save(versions[i%2]))
	}
	close(stop)
	readers.Wait()
	require.Equal(t, []string{"web@box@eth0.json"}, files(t, s))
}

// A writer that was killed in the middle leaves a file that is no record, and
// that goes with the attachment.
func TestKilledWriter(t *testing.T) {
	s := openStore(t)
	save(t, s, box)
	neighbour := conf.Key{Network: "web", ContainerID: "box", IfName: "eth1"}
	write(t, filepath.Join(s.Dir(), ".web@box@eth0.json.tmp-123"), `{"ver`)
	write(t, filepath.Join(s.Dir(), ".web@box@eth1.json.tmp-123"), `{"ver`)
	records, damaged, err := s.List()
	require.NoError(t, err)
	require.Len(t, records, 1)
	require.Empty(t, damaged)
	require.NoError(t, s.Remove(box))
	require.Equal(t, []string{".web@box@eth1.json.tmp-123"}, files(t, s))
	require.NoError(t, s.Remove(neighbour))
	require.Empty(t, files(t, s))
}

func TestRemove(t *testing.T) {
	s := openStore(t)
	other := conf.Key{Network: "web", ContainerID: "other", IfName: "eth0"}
	save(t, s, box)
	save(t, s, other)
	for _, ext := range []string{"alive", "busy", "log", "sock", "api"} {
		write(t, s.Path(box, ext), "")
	}
	require.NoError(t, s.Remove(box))
	require.Equal(t, []string{"web@other@eth0.json"}, files(t, s))
	require.NoError(t, s.Remove(box), "nothing there is success")
}

func TestSiblings(t *testing.T) {
	dir := t.TempDir()
	s, err := record.Open(filepath.Join(dir, "state"))
	require.NoError(t, err)
	long := conf.Key{Network: strings.Repeat("n", 190), ContainerID: "box", IfName: "eth2"}
	second := conf.Key{Network: "db", ContainerID: "box", IfName: "eth1"}
	for _, k := range []conf.Key{box, second, long, {Network: "db", ContainerID: "boxer", IfName: "eth0"}, {Network: "box", ContainerID: "web", IfName: "eth0"}} {
		save(t, s, k)
	}
	write(t, s.Path(conf.Key{Network: "lone", ContainerID: "box", IfName: "eth3"}, "lock"), "")
	keys, err := s.Siblings(box)
	require.NoError(t, err)
	require.ElementsMatch(t, []conf.Key{second, long}, keys)
}

func TestList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a[b]*?\c`)
	s, err := record.Open(dir)
	require.NoError(t, err)
	at := conf.Key{Network: "web", ContainerID: "box", IfName: "e@th"}
	long := conf.Key{Network: strings.Repeat("n", 150), ContainerID: strings.Repeat("c", 150), IfName: "eth0"}
	for _, k := range []conf.Key{box, at, long} {
		save(t, s, k)
	}
	write(t, filepath.Join(dir, "web@damaged@e@th.json"), "{")
	write(t, filepath.Join(dir, "driver-0123.cache"), "{}")
	write(t, filepath.Join(dir, "note.json"), "{}")
	write(t, filepath.Join(dir, "web@box@eth9.lock"), "")
	copied, err := os.ReadFile(s.Path(box, "json"))
	require.NoError(t, err)
	write(t, filepath.Join(dir, "web@copy@eth0.json"), string(copied))

	records, damaged, err := s.List()
	require.NoError(t, err)
	var keys []conf.Key
	for _, r := range records {
		keys = append(keys, r.Key)
	}
	require.ElementsMatch(t, []conf.Key{box, at, long}, keys)
	require.ElementsMatch(t, []conf.Key{
		{Network: "web", ContainerID: "damaged", IfName: "e@th"},
		{Network: "web", ContainerID: "copy", IfName: "eth0"},
	}, damaged)
}

// Every attachment has files of its own, whose names a file system takes.
func TestPath(t *testing.T) {
	s := openStore(t)
	n200 := strings.Repeat("n", 200)
	keys := []conf.Key{
		box,
		{Network: "web", ContainerID: "box", IfName: "eth1"},
		{Network: "web.box", ContainerID: "eth0", IfName: "x"},
		{Network: "web", ContainerID: "box.eth0", IfName: "x"},
		{Network: "web", ContainerID: "box", IfName: "eth0@x"},
		{Network: n200 + "1", ContainerID: "box", IfName: "eth0"},
		{Network: n200 + "2", ContainerID: "box", IfName: "eth0"},
		{Network: n200, ContainerID: "1box", IfName: "eth0"},
		{Network: n200, ContainerID: n200, IfName: "eth0"},
		{Network: n200, ContainerID: n200, IfName: "eth1"},
	}
	seen := make(map[string]conf.Key)
	for _, k := range keys {
		for _, ext := range []string{"json", "lock", "alive", "log", "sock", "api"} {
			path := s.Path(k, ext)
			require.Equal(t, s.Dir(), filepath.Dir(path))
			require.NotContains(t, seen, path, "%s and %s share a file", seen[path], k)
			seen[path] = k
			write(t, path, "")
			if ext == "sock" || ext == "api" {
				require.LessOrEqual(t, len(filepath.Base(path)), 32)
			}
		}
		require.NoError(t, s.Remove(k))
		save(t, s, k)
		got, err := s.Load(k)
		require.NoError(t, err)
		require.Equal(t, k, got.Key)
	}
}

// soon ends a wait that is meant to fail, for the reason errSoon.
var errSoon = errors.New("waited long enough")

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), 30*time.Millisecond, errSoon)
	t.Cleanup(cancel)
	return ctx
}

func TestLockExcludes(t *testing.T) {
	s := openStore(t)
	other := conf.Key{Network: "web", ContainerID: "other", IfName: "eth0"}
	unlock, err := s.Lock(context.Background(), box)
	require.NoError(t, err)
	_, err = s.Lock(soon(t), box)
	require.ErrorIs(t, err, errSoon)
	require.ErrorContains(t, err, "web/box/eth0")
	_, err = s.LockAll(soon(t))
	require.ErrorIs(t, err, errSoon, "GC waits for the verb")
	unlockOther, err := s.Lock(t.Context(), other)
	require.NoError(t, err, "another attachment does not wait")
	unlockOther()
	unlock()
	unlock, err = s.Lock(t.Context(), box)
	require.NoError(t, err)
	unlock()
}

func TestLockAllExcludes(t *testing.T) {
	s := openStore(t)
	unlock, err := s.LockAll(context.Background())
	require.NoError(t, err)
	_, err = s.Lock(soon(t), box)
	require.ErrorIs(t, err, errSoon)
	_, err = s.LockAll(soon(t))
	require.ErrorIs(t, err, errSoon)
	unlock()
	unlock, err = s.Lock(t.Context(), box)
	require.NoError(t, err)
	unlock()
	require.Empty(t, files(t, s))
}

func TestLockCleansItsFile(t *testing.T) {
	s := openStore(t)
	unlock, err := s.Lock(context.Background(), box)
	require.NoError(t, err)
	require.Equal(t, []string{"web@box@eth0.lock"}, files(t, s))
	save(t, s, box)
	unlock()
	require.Equal(t, []string{"web@box@eth0.json", "web@box@eth0.lock"}, files(t, s), "it stays with the record")

	unlock, err = s.Lock(context.Background(), box)
	require.NoError(t, err)
	require.NoError(t, s.Remove(box))
	unlock()
	require.Empty(t, files(t, s))

	write(t, s.Path(box, "lock"), "")
	require.NoError(t, s.RemoveLock(box))
	require.NoError(t, s.RemoveLock(box))
	require.Empty(t, files(t, s))
}

// Verbs one after the other, each of which takes the file away that the next one
// may have opened already.
func TestLockUnderContention(t *testing.T) {
	s := openStore(t)
	var inside, done atomic.Int32 // the race detector does not know flock(2)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				unlock, err := s.Lock(context.Background(), box)
				if err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two verbs at once")
				}
				time.Sleep(100 * time.Microsecond)
				inside.Add(-1)
				done.Add(1)
				unlock()
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 40, done.Load())
	require.Empty(t, files(t, s))
}

func TestLockRefusesALink(t *testing.T) {
	s := openStore(t)
	target := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.Symlink(target, s.Path(box, "lock")))
	_, err := s.Lock(context.Background(), box)
	require.ErrorIs(t, err, unix.ELOOP)
	require.NoFileExists(t, target)
}

// What list shows people of a verb at work.
func TestBusy(t *testing.T) {
	s := openStore(t)
	require.False(t, s.Busy(box))
	unlock, err := s.Lock(context.Background(), box)
	require.NoError(t, err)
	require.True(t, s.Busy(box))
	require.False(t, s.Busy(conf.Key{Network: "web", ContainerID: "other", IfName: "eth0"}))
	unlock()
	require.False(t, s.Busy(box))
	unlock, err = s.LockAll(context.Background())
	require.NoError(t, err)
	require.True(t, s.Busy(box), "a GC")
	unlock()
	require.Empty(t, files(t, s))
}

func TestNetworks(t *testing.T) {
	s := openStore(t)
	save(t, s, box)
	save(t, s, conf.Key{Network: "web", ContainerID: "other", IfName: "eth0"})
	for _, name := range []string{"locked@x@eth0.lock", ".killed@x@eth0.json.tmp-1", "driver-1.cache", "0123.sock", "note@x.json"} {
		write(t, filepath.Join(s.Dir(), name), "")
	}
	networks, err := s.Networks()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"web", "locked", "killed"}, networks)
}

func TestConfigurationsAreKeptToTheByte(t *testing.T) {
	s := openStore(t)
	delegate := "{ \"type\" : \"bridge\",\n\t\"n\": 9007199254740993, \"e\": 1.50e+3, \"t\": \"<&>\\u00e9\", \"null\": null, \"n\" : [ ] }"
	r := newRecord(t, box, ", \"delegates\" :\n[ "+delegate+" ] ")
	r.Delegates = []json.RawMessage{json.RawMessage(delegate), json.RawMessage(`{"type":"firewall"}`)}
	require.NoError(t, s.Save(r))
	back, err := s.Load(box)
	require.NoError(t, err)
	require.Equal(t, delegate, string(back.Delegates[0]))
	require.Equal(t, string(r.Config), string(back.Config))
	require.Len(t, back.Delegates, 2)
	r.Config = json.RawMessage("{")
	require.Error(t, s.Save(r))
	again, err := s.Load(box)
	require.NoError(t, err, "the old one is still there")
	require.Equal(t, string(back.Config), string(again.Config))
}
