package bridge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// SystemBus is the socket of the host's message bus.
const SystemBus = "/run/dbus/system_bus_socket"

// Host is the side of the bridge: sockets of its network namespace. They say which one
// that is, and no thread needs to be in it; a room that has other means to get such
// sockets fills it in by itself.
type Host struct {
	Route  *nlsock.Socket // NETLINK_ROUTE
	Filter *nlsock.Socket // NETLINK_NETFILTER
	Sysctl Sysctl         // of its /proc/sys/net
	// IPTables says that the host may have an iptables firewall which drops what is
	// forwarded, and that programs run by this thread are in its namespace.
	IPTables bool
	// RemoveLinks, unless it is nil, removes interfaces by their indexes, and returns as soon as
	// they are gone. After an error this process does it, by Route; and then it waits until the
	// kernel has forgotten all about them, which takes it ten times as long.
	RemoveLinks func(indexes []int) error
	// DBus is the path of the socket on which firewalld may be reached; empty: never.
	DBus string
}

// Container is the side of the container. A nil one stands for a namespace that is
// gone.
type Container struct {
	Path      string         // as the runtime gave it, for the result
	Namespace *os.File       // its network namespace
	Route     *nlsock.Socket // NETLINK_ROUTE
	Sysctl    Sysctl         // of its /proc/sys/net
}

// Sysctl reads and writes files of /proc/sys/net in one namespace.
type Sysctl interface {
	Read(name string) (string, error) // name as in "ipv4/ip_forward"
	Write(name, value string) error
}

// OpenHost opens the side of the bridge in the namespace of the calling thread.
func OpenHost() (Host, error) {
	route, err := nlsock.Open(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return Host{}, err
	}
	filter, err := nlsock.Open(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return Host{}, errors.Join(firewallError("", err), route.Close())
	}
	return Host{Route: route, Filter: filter, Sysctl: here{}, IPTables: true, DBus: SystemBus}, nil
}

// Close closes the sockets.
func (h Host) Close() {
	h.Route.Close()
	h.Filter.Close()
}

// OpenContainer opens the side of a container. The file, its network namespace, stays
// the caller's.
func OpenContainer(path string, namespace *os.File) (*Container, error) {
	route, err := nlsock.Open(unix.NETLINK_ROUTE, namespace)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return &Container{Path: path, Namespace: namespace, Route: route, Sysctl: inside{namespace}}, nil
}

// Close closes the socket.
func (c *Container) Close() {
	if c != nil {
		c.Route.Close()
	}
}

// here is /proc/sys/net of this thread.
type here struct{}

func sysctlPath(name string) string { return filepath.Join("/proc/sys/net", name) }

func (here) Read(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	return strings.TrimSpace(string(b)), err
}

func (here) Write(name, value string) error {
	return os.WriteFile(sysctlPath(name), []byte(value), 0o644)
}

// inside is /proc/sys/net of a namespace that a thread of its own enters.
type inside struct{ namespace *os.File }

func (i inside) Read(name string) (value string, err error) {
	err = nlsock.In(i.namespace, func() (err error) {
		value, err = here{}.Read(name)
		return err
	})
	return value, err
}

func (i inside) Write(name, value string) error {
	return nlsock.In(i.namespace, func() error { return here{}.Write(name, value) })
}

// set writes a sysctl unless it has the value already: /proc/sys may be read-only.
func set(s Sysctl, name, value string) error {
	now, err := s.Read(name)
	if err == nil && now == value {
		return nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without the family
	}
	if err := s.Write(name, value); err != nil {
		return fmt.Errorf("setting net.%s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}
