package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// Role is the first argument of a process that is to be a supervisor, and driverRole the
// second of one that is the driver's helper instead (driver.HelperMain).
const (
	Role       = "supervisor"
	driverRole = "tap"
)

// The descriptors that a supervisor is started with, beside standard error, which
// is BASE.log, for appending. Descriptors puts them in this order.
const (
	configFD  = 3 + iota // pipe, Config as JSON
	readyFD              // pipe, Ready as JSON
	netnsFD              // the container's network namespace
	aliveFD              // BASE.alive, locked
	controlFD            // control socket, listening
	OwnerFD              // the user namespace that nsenter joins, when it does
	socketFD             // the first of the published ports' sockets
)

// Descriptors are the open files that a supervisor is started with.
type Descriptors struct {
	Config, Ready         *os.File
	Netns, Alive, Control *os.File
	Owner                 *os.File // nil: no user namespace is joined
	Sockets               []forward.Socket
}

// List has them as exec.Cmd.ExtraFiles wants them.
func (d Descriptors) List() []*os.File {
	files := []*os.File{d.Config, d.Ready, d.Netns, d.Alive, d.Control, d.Owner}
	for _, s := range d.Sockets {
		files = append(files, s.File)
	}
	return files
}

// Config is all a supervisor knows.
type Config struct {
	Container Container      `json:"container,omitzero"` // one of the two
	Hub       *Hub           `json:"hub,omitempty"`
	Driver    driver.Command `json:"driver"`
	LogLevel  string         `json:"logLevel"`
	Joined    bool           `json:"joined,omitempty"` // OwnerFD is open
	// CleanOnly: take away what a killed supervisor left inside, and leave.
	CleanOnly bool `json:"cleanOnly,omitempty"`
}

// Container is the tenant's part.
type Container struct {
	Key      conf.Key           `json:"key"`
	StateDir string             `json:"stateDir"`
	Netns    record.Netns       `json:"netns"`
	Plan     plan.Interface     `json:"plan"`
	SourceIP conf.SourceIP      `json:"sourceIP"`
	Sockets  []Socket           `json:"sockets,omitempty"` // of the ports that rootlessport publishes
	Ports    []conf.PortMapping `json:"ports,omitempty"`   // that the driver publishes
}

// Hub is the tenant's part when it is a hub.
type Hub struct {
	Network  string         `json:"network"`
	Name     string         `json:"name"` // of the hub, see rootless/hub
	StateDir string         `json:"stateDir"`
	Bridge   string         `json:"bridge"` // the interface over which members come
	Plan     plan.Interface `json:"plan"`   // of the driver's interface
}

// Socket describes an inherited socket; they come in this order from socketFD.
type Socket struct {
	Mapping conf.PortMapping `json:"mapping"`
	Family  int              `json:"family"`
}

// local is where the socket has to be bound.
func (s Socket) local() localAddress {
	ip := s.Mapping.HostIP
	if !ip.IsValid() {
		ip = netip.IPv4Unspecified()
		if s.Family == unix.AF_INET6 {
			ip = netip.IPv6Unspecified()
		}
	}
	return localAddress{s.Mapping.Protocol, netip.AddrPortFrom(ip, s.Mapping.HostPort)}
}

// Ready ends the start of a supervisor, well or not.
type Ready struct {
	Plan       *plan.Interface `json:"plan,omitempty"` // as it was carried out
	Error      *types.Error    `json:"error,omitempty"`
	LostRights bool            `json:"lostRights,omitempty"` // exec took the capabilities: start again as uid 0
}

// DecodeReady reads what a supervisor says about its start. One that succeeded has
// a plan, unless it was only to clean.
func DecodeReady(from io.Reader, cleanOnly bool) (*Ready, error) {
	var m Ready
	err := json.NewDecoder(from).Decode(&m)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the supervisor ended before it was ready")
	case err != nil:
		return nil, fmt.Errorf("waiting for the supervisor: %w", err)
	case m.Plan == nil && m.Error == nil && !m.LostRights && !cleanOnly:
		return nil, errors.New("the supervisor says that it is ready and not what it has set up: is it of another version of ambi?")
	}
	return &m, nil
}

// readConfig reads the configuration and closes what is of no use after it.
func readConfig() (*Config, error) {
	pipe := os.NewFile(configFD, "configuration pipe")
	defer pipe.Close()
	config, err := decodeConfig(pipe)
	if err == nil && config.Joined {
		unix.Close(OwnerFD)
	}
	return config, err
}

func decodeConfig(from io.Reader) (*Config, error) {
	var config Config
	if err := json.NewDecoder(from).Decode(&config); err != nil {
		return nil, fmt.Errorf("reading the supervisor's configuration: %w", err)
	}
	return &config, nil
}

func tell(ready *os.File, m Ready, code int) int {
	defer ready.Close()
	if err := json.NewEncoder(ready).Encode(m); err != nil {
		return 1
	}
	return code
}

func tellFailure(ready *os.File, err error) int {
	return tell(ready, Ready{Error: asCNI(err)}, 1)
}

// asCNI is the error as the specification wants it.
func asCNI(err error) *types.Error {
	var e *types.Error
	if !errors.As(err, &e) {
		e = conf.Errorf(conf.ErrNetwork, "%v", err)
	}
	return e
}
