package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// This file is how a supervisor makes room for another program: a keeper of that program holds
// all that its own has held, and starts a supervisor when this one has ended, as if it had been
// killed. So who connects to a port meanwhile waits. Connections that it serves may come to their
// end, for a moment, and end with it then.

// lastWord is the patience with a caller who does not take the answer.
const lastWord = 2 * time.Second

// replace says whether this process ends. It does not where it runs that program already.
func (s *supervisor) replace(r request, files []*os.File) (leaving bool, err error) {
	if len(files) != 1 {
		return false, conf.Errorf(types.ErrDecodingFailure, "control request %s: it takes one file, the program", r.Op)
	}
	same, err := isOurs(files[0])
	if err != nil || same {
		return false, err
	}
	if err := s.hub.pause(); err != nil {
		return false, err
	}
	err = withFDs(files, nil, func(fds ...int) error { return s.twin.replace("/proc/self/fd/" + strconv.Itoa(fds[0])) })
	if err != nil {
		s.hub.verbs.Add(-noMoreVerbs)
		return false, fmt.Errorf("starting a keeper of the new program: %w", err)
	}
	s.log.Info("making room for another program")
	s.hub.drain()
	go func() {
		select {
		case <-r.caller.Done():
		case <-time.After(lastWord):
		}
		os.Exit(0)
	}()
	return true, nil
}

// drainTime is how long connections have that there are, while new ones wait.
const drainTime = time.Second

// drain lets connections through published ports come to their end. The rules and routes by which
// they come back stay for them.
func (h *hub) drain() {
	h.inside.LeaveAtOnce()
	h.mu.Lock()
	var ports []Socket
	for _, sockets := range h.published {
		ports = append(ports, sockets...)
	}
	h.mu.Unlock()
	for m := range mappingsOf(ports) {
		_ = h.forwarder.Remove(m) // of what it has not there is nothing to wait for
	}
	for deadline := time.Now().Add(drainTime); h.forwarder.Connections() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// isOurs says whether it is the program that this process runs.
func isOurs(program *os.File) (bool, error) {
	var own, other unix.Stat_t
	err := withFDs([]*os.File{program}, nil, func(fds ...int) error {
		return errors.Join(unix.Stat(ownProgram, &own), unix.Fstat(fds[0], &other))
	})
	if err == nil && other.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is no file")
	}
	if err != nil {
		return false, fmt.Errorf("the program that is to take over: %w", err)
	}
	return own.Dev == other.Dev && own.Ino == other.Ino, nil
}

// noMoreVerbs is added to the number of verbs when no more may begin.
const noMoreVerbs = 1 << 20

// pause has no verb run in the hub from now on: it would end in the middle of its work.
func (h *hub) pause() error {
	if h.verbs.CompareAndSwap(0, noMoreVerbs) {
		return nil
	}
	if h.verbs.Load() >= noMoreVerbs {
		return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "another upgrade of the network is under way"), "try again when it is done")
	}
	return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "delegates are at work in the hub"), "try again when they are done")
}
