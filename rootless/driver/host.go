package driver

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// This file is what a driver has of the host, which changes: a network goes and another one
// comes, as a notebook is carried about.

// resolvConf has the host's name servers (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// Version is that of a file; zero when there is none.
type Version struct {
	inode   uint64
	size    int64
	changed unix.Timespec
}

// Resolver is the version of the host's resolv.conf: another one may make a difference to
// OfHost. It costs little to ask.
func (c *Command) Resolver() Version {
	var st unix.Stat_t
	if unix.Stat(resolvConf, &st) != nil {
		return Version{}
	}
	return Version{st.Ino, st.Size, st.Ctim}
}

// outbound are the addresses that connections go out from at the moment; empty: any.
func (c *Command) outbound() (v4, v6 string, err error) {
	if v4, err = outboundAddress("rootless.outboundAddr", c.Outbound4, netip.Addr.Is4); err != nil {
		return "", "", err
	}
	v6, err = outboundAddress("rootless.outboundAddr6", c.Outbound6, netip.Addr.Is6)
	return v4, v6, err
}

// OfHost is what the driver would have of the host for good if it were started now: when
// it is not what it was at its start, another driver has to take its place.
func (c *Command) OfHost() string {
	v4, v6, err := c.outbound()
	if err != nil {
		v4 = err.Error()
	}
	return v4 + " " + v6 + " " + Of(c.Driver).ofHost(c)
}

// Same says that a container that asks for the other can do with this one.
func (c *Command) Same(other *Command) bool {
	return c.Path == other.Path && slices.Equal(c.Args, other.Args) && c.Outbound4 == other.Outbound4 && c.Outbound6 == other.Outbound6
}

// FollowsHost says that OfHost can change.
func (c *Command) FollowsHost() bool {
	return c.Outbound4+c.Outbound6 != "" || Of(c.Driver).ofHost(c) != ""
}
