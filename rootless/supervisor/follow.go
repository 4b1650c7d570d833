package supervisor

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/rootless/driver"
)

// This file has the driver follow the host, whose networks come and go (see
// [driver.Command.OfHost]). Most drivers ask the kernel for each connection, and need
// nothing.

// lookAgain is how long a change of a file goes unnoticed, and settle how long those of a
// network take, which come in groups.
const (
	lookAgain = 250 * time.Millisecond
	settle    = 100 * time.Millisecond
)

// followHost ends a driver that has of the host what is there no more; [keepDriver] starts
// another.
func (s *supervisor) followHost() {
	if !s.command.FollowsHost() {
		return
	}
	<-s.started
	changes, err := networkChanges()
	if err != nil {
		s.log.Warn("the driver does not follow the host's network", "error", err)
		return
	}
	defer changes.Close()
	resolver := s.command.Resolver()
	for message := make([]byte, 8<<10); !s.leaving(); {
		_ = changes.SetReadDeadline(time.Now().Add(lookAgain))
		// Only that there was one counts, and ENOBUFS says that there were many.
		_, err := changes.Read(message)
		before := resolver
		switch resolver = s.command.Resolver(); {
		case err == nil, errors.Is(err, unix.ENOBUFS):
			time.Sleep(settle)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			s.log.Warn("the driver follows the host's network no more", "error", err)
			return
		case resolver == before:
			continue
		}
		s.followChange()
	}
}

func (s *supervisor) followChange() {
	s.mu.Lock()
	process := s.driver
	s.mu.Unlock()
	s.work.Lock()
	now := s.command.OfHost()
	stale := s.ofHost != now
	if f, ok := process.(driver.Follower); ok && stale {
		if err := f.Follow(&s.command); err != nil {
			s.log.Warn("following the host's network", "error", err)
		}
		s.ofHost, stale = now, false
	}
	s.work.Unlock()
	if !stale {
		return
	}
	if process != nil {
		s.log.Info("the host's network has changed, starting the driver again")
		process.Stop()
	}
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// networkChanges is a socket that has a message for each address that comes or goes
// (rtnetlink(7)).
func networkChanges() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("a socket that tells of its changes: %w", err)
	}
	groups := unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_LINK}
	if err := unix.Bind(fd, &groups); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("a socket that tells of its changes: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}
