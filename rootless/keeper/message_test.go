package keeper

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pairOf(t *testing.T) (ours, theirs int) {
	t.Helper()
	ours, theirs, err := Pair()
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(ours) })
	return ours, theirs
}

func TestMessages(t *testing.T) {
	ours, theirs := pairOf(t)
	_, err := Receive(theirs)
	require.ErrorIs(t, err, unix.EAGAIN)

	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	value := []byte("{\"a\":\n\x00}")
	require.NoError(t, Send(ours, &Message{Verb: Keep, Key: "port *:80->80/tcp", Value: value, Files: []int{int(w.Fd())}}))
	require.NoError(t, Send(ours, &Message{Verb: All}))
	w.Close()
	m, err := Receive(theirs)
	require.NoError(t, err)
	require.Equal(t, "port *:80->80/tcp", m.Key)
	require.Equal(t, value, m.Value)
	require.Len(t, m.Files, 1)
	flags, err := unix.FcntlInt(uintptr(m.Files[0]), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.Equal(t, unix.FD_CLOEXEC, flags, "a file does not go to the next program by itself")
	_, err = unix.Write(m.Files[0], []byte("x"))
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = r.Read(b)
	require.NoError(t, err)
	CloseFiles(m.Files)

	m, err = Receive(theirs)
	require.NoError(t, err)
	require.Equal(t, &Message{Verb: All, Value: []byte{}}, m)

	require.Error(t, Send(ours, &Message{Verb: Keep, Value: []byte(strings.Repeat("x", mostBytes))}))
	unix.Close(theirs)
	require.True(t, Ended(Send(ours, &Message{Verb: All})))
	_, err = Receive(ours)
	require.True(t, Ended(err))
}

// A supervisor does what a keeper holds one by one: it never waits for one that is busy.
func TestSendDoesNotWait(t *testing.T) {
	ours, _ := pairOf(t)
	m := &Message{Verb: Keep, Key: "k", Value: make([]byte, 1000)}
	var err error
	for range 10_000 {
		if err = Send(ours, m); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, unix.EAGAIN)
}

// A keeper lets go what it is told to, and has an item once.
func TestItems(t *testing.T) {
	ours, theirs := pairOf(t)
	k := &keeper{pair: theirs, twin: -1, items: map[string]item{}}
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	said := func(m *Message) {
		require.NoError(t, Send(ours, m))
		k.listen()
		answer, err := Receive(ours)
		require.NoError(t, err)
		require.Equal(t, Done, answer.Verb)
		require.Equal(t, m.Key, answer.Key)
	}
	for range 3 {
		said(&Message{Verb: Keep, Key: "one", Files: []int{int(w.Fd())}})
	}
	said(&Message{Verb: Keep, Key: "two", Value: []byte("2")})
	said(&Message{Verb: "dance", Files: []int{int(w.Fd())}}) // of a later version
	w.Close()
	require.Len(t, k.items, 2)
	require.False(t, k.whole)
	said(&Message{Verb: All})
	require.True(t, k.whole)
	said(&Message{Verb: Drop, Key: "one"})
	said(&Message{Verb: Drop, Key: "three"})
	require.Len(t, k.items, 1)
	n, err := r.Read(make([]byte, 1))
	require.Zero(t, n, "nobody has the other end open any more")
	require.Error(t, err)
}
