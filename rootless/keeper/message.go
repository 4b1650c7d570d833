package keeper

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Version is that of the messages. A twin of another version is spoken to all the same: what a
// later one adds to the verbs, an earlier one answers and forgets.
//
// Since version 2 a keeper understands Next, and a supervisor goes on with a driver.
const Version = "2"

// The verbs of messages. What a supervisor says is answered with Done, so that it knows when a
// file is held, or let go.
const (
	Hello = "hello" // from each at first: the value is its version, the file its pidfd
	Keep  = "keep"  // from a supervisor: an item; from a keeper, to a new supervisor, likewise
	Drop  = "drop"  // from a supervisor: an item goes, its files are closed
	All   = "all"   // from each to a new one: that was the last item of those that are there
	Next  = "next"  // from a supervisor: another is to be started, beside this one, which will say no more
	Done  = "done"  // from a keeper: the answer
)

// Message is what goes over the pair, one packet each.
type Message struct {
	Verb  string
	Key   string // of the item; no line break in it
	Value []byte
	Files []int
}

// MostFiles is how many go with a message (SCM_MAX_FD, unix(7), is 253).
const MostFiles = 250

// mostBytes is how long a message may be: half of what a socket's buffer takes by default.
const mostBytes = 100 << 10

// Pair makes the two ends, which are close-on-exec.
func Pair() (ours, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("a pair of sockets: %w", err)
	}
	return fds[0], fds[1], nil
}

// Send sends a message; unix.EAGAIN when the other one has to read first.
func Send(fd int, m *Message) error {
	b := fmt.Appendf(nil, "%s %s\n%s", m.Verb, m.Key, m.Value)
	if len(b) > mostBytes || len(m.Files) > MostFiles {
		return fmt.Errorf("item %s is too large: %d bytes, %d files", m.Key, len(b), len(m.Files))
	}
	var oob []byte
	if len(m.Files) > 0 {
		oob = unix.UnixRights(m.Files...)
	}
	return unix.Sendmsg(fd, b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
}

// errEnded is of a pair whose other end is closed.
var errEnded = errors.New("the other end is closed")

// Receive reads a message; unix.EAGAIN when there is none. The files are the caller's.
func Receive(fd int) (*Message, error) {
	size, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, errEnded
	}
	b, oob := make([]byte, min(size, mostBytes)), make([]byte, unix.CmsgSpace(4*MostFiles))
	n, oobn, flags, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	files, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("a message that is too long, or more files than may be open")
	}
	if err != nil {
		CloseFiles(files)
		return nil, err
	}
	head, value, _ := bytes.Cut(b[:n], []byte("\n"))
	verb, key, _ := bytes.Cut(head, []byte(" "))
	return &Message{Verb: string(verb), Key: string(key), Value: value, Files: files}, nil
}

func rights(oob []byte) (files []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		files = append(files, fds...)
	}
	return files, nil
}

// CloseFiles closes what came along.
func CloseFiles(files []int) {
	for _, fd := range files {
		unix.Close(fd)
	}
}

// Ended says that an error is of a twin that is gone.
func Ended(err error) bool {
	return errors.Is(err, errEnded) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}
