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
	six := s.hub.config.Plan.IPv6.Enabled()
	if !six && !s.command.FollowsHost() {
		return
	}
	changes, err := networkChanges()
	if err != nil {
		s.log.Warn("the driver does not follow the host's network", "error", err)
		return
	}
	defer changes.Close()
	if six {
		s.followReach()
	}
	<-s.started
	resolver := s.command.Resolver()
	for message := make([]byte, 8<<10); !s.leaving(); {
		if s.command.FollowsHost() {
			_ = changes.SetReadDeadline(time.Now().Add(lookAgain))
		}
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
		if six {
			s.followReach()
		}
	}
}

// followReach has the hub refuse what the host does not get to by IPv6.
func (s *supervisor) followReach() {
	now := s.command.ReachByIPv6()
	if s.reach != nil && s.reach.Equal(now) {
		return
	}
	if err := s.hub.inside.ReachByIPv6(now.Everywhere, now.Only, !s.command.TellsConnections(s.hub.config.Only != nil)); err != nil {
		s.log.Warn("a container may have to wait for what the host does not get to", "error", err)
	}
	s.reach = &now
}

func (s *supervisor) followChange() {
	s.mu.Lock()
	process := s.driver
	s.mu.Unlock()
	s.work.Lock() // for good, by one that is replaced
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
		s.disown()
		process.Stop()
	}
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// networkChanges is a socket that has a message for each address, and route of IPv6, that comes or goes
// (rtnetlink(7)).
func networkChanges() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("a socket that tells of its changes: %w", err)
	}
	groups := unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE | unix.RTMGRP_LINK}
	if err := unix.Bind(fd, &groups); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("a socket that tells of its changes: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}
