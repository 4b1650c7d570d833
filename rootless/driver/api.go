package driver

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// slirpAPI is the API socket of slirp4netns (slirp4netns(1), "API SOCKET"), which
// publishes ports when rootless.portHandler is slirp4netns. It says that it failed, and not
// why.
type slirpAPI struct {
	path  string
	guest netip.Addr
}

func (slirp4netns) Publishes(h conf.PortHandler) bool { return h == conf.HandlerSlirp4netns }

// Publishable: slirp4netns forwards IPv4 only, and a mapping of every address becomes one
// of 0.0.0.0.
func (slirp4netns) Publishable(m conf.PortMapping) (conf.PortMapping, error) {
	if m.HostIP.Is6() {
		return m, conf.Mendf(conf.Unsupported("runtimeConfig.portMappings.hostIP", m.HostIP, "rootless.portHandler slirp4netns forwards IPv4 only"), "use rootlessport")
	}
	return forIPv4(m), nil
}

func forIPv4(m conf.PortMapping) conf.PortMapping {
	if !m.HostIP.IsValid() {
		m.HostIP = netip.IPv4Unspecified()
	}
	return m
}

func (slirp4netns) publisher(c *Command, container netip.Addr) Publisher {
	return slirpAPI{path: c.APISocket, guest: container}
}

// apiRequest: add_hostfwd needs every one of its arguments, as slirp4netns compares a
// missing proto with strcmp and dies of it. The other requests have none of them.
type apiRequest struct {
	Execute   string        `json:"execute"`
	Arguments *apiArguments `json:"arguments,omitempty"`
}

type apiArguments struct {
	Proto     string `json:"proto,omitempty"`
	HostAddr  string `json:"host_addr,omitempty"`
	HostPort  uint16 `json:"host_port,omitempty"`
	GuestAddr string `json:"guest_addr,omitempty"`
	GuestPort uint16 `json:"guest_port,omitempty"`
	ID        int    `json:"id,omitempty"`
}

// apiReply is a reply with or without the documented "return" around it:
// list_hostfwd of 1.2.0 leaves it out.
type apiReply struct {
	Return  *apiReturn `json:"return"`
	Error   *apiError  `json:"error"`
	Entries []apiEntry `json:"entries"`
}

type apiReturn struct {
	ID      int        `json:"id"`
	Entries []apiEntry `json:"entries"`
}

type apiError struct {
	Desc string `json:"desc"`
}

type apiEntry struct {
	ID        int    `json:"id"`
	Proto     string `json:"proto"`
	HostAddr  string `json:"host_addr"`
	HostPort  uint16 `json:"host_port"`
	GuestAddr string `json:"guest_addr"`
	GuestPort uint16 `json:"guest_port"`
}

func (api slirpAPI) Add(m conf.PortMapping) error {
	_, err := api.call(apiRequest{"add_hostfwd", &apiArguments{
		Proto: string(m.Protocol), HostAddr: apiHost(m), HostPort: m.HostPort,
		GuestAddr: api.guest.String(), GuestPort: m.ContainerPort,
	}})
	if err != nil {
		return fmt.Errorf("publishing %s by slirp4netns: %w", m, err)
	}
	return nil
}

func apiHost(m conf.PortMapping) string { return forIPv4(m).HostIP.String() }

func (api slirpAPI) Remove(m conf.PortMapping) error {
	entries, err := api.list()
	if err != nil {
		return fmt.Errorf("listing the ports of slirp4netns: %w", err)
	}
	for _, e := range entries {
		if e.matches(m) {
			if _, err := api.call(apiRequest{"remove_hostfwd", &apiArguments{ID: e.ID}}); err != nil {
				return fmt.Errorf("removing %s from slirp4netns: %w", m, err)
			}
		}
	}
	return nil
}

func (e apiEntry) matches(m conf.PortMapping) bool {
	return e.Proto == string(m.Protocol) && e.HostPort == m.HostPort && e.HostAddr == apiHost(m)
}

func (api slirpAPI) Check(mappings []conf.PortMapping) error {
	entries, err := api.list()
	if err != nil {
		return fmt.Errorf("listing the ports of slirp4netns: %w", err)
	}
	var errs []error
	for _, m := range mappings {
		found := false
		for _, e := range entries {
			found = found || e.matches(m)
		}
		if !found {
			errs = append(errs, fmt.Errorf("port %s is not published by slirp4netns", m))
		}
	}
	return errors.Join(errs...)
}

func (api slirpAPI) list() ([]apiEntry, error) {
	r, err := api.call(apiRequest{Execute: "list_hostfwd"})
	if err != nil {
		return nil, err
	}
	return r.entries(), nil
}

func (r *apiReply) entries() []apiEntry {
	if r.Return != nil {
		return r.Return.Entries
	}
	return r.Entries
}

const apiTimeout = 10 * time.Second

// call is one request on one connection; slirp4netns reads it with a single
// read(2) and waits for the end of our side.
func (api slirpAPI) call(r apiRequest) (*apiReply, error) {
	name, folder, err := record.SocketName(api.path)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("its API socket: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(apiTimeout))
	line, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(line); err != nil {
		return nil, err
	}
	if err := conn.CloseWrite(); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(conn, 8<<20))
	if err != nil {
		return nil, err
	}
	return decodeAPIReply(b)
}

func decodeAPIReply(b []byte) (*apiReply, error) {
	var r apiReply
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("its API answered %.100q: %w", b, err)
	}
	if r.Error != nil {
		return nil, errors.New(cmp.Or(r.Error.Desc, "its API refused, and gave no reason"))
	}
	return &r, nil
}
