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
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/keeper"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// Role is the first argument of a process that is to be a supervisor, and driverRole the
// second of one that is the driver's helper instead (driver.HelperMain): no network is called so.
const (
	Role       = keeper.SupervisorRole
	driverRole = "--tap"
)

// The descriptors that a supervisor is started with, beside standard error, which
// is the log, for appending. Descriptors puts them in this order.
const (
	configFD  = 3 + iota // pipe, Config as JSON
	readyFD              // pipe, Ready as JSON
	aliveFD              // the file alive, locked
	controlFD            // control socket, listening
)

// Descriptors are the open files that a supervisor is started with.
type Descriptors struct{ Config, Ready, Alive, Control *os.File }

// List has them as exec.Cmd.ExtraFiles wants them.
func (d Descriptors) List() []*os.File { return []*os.File{d.Config, d.Ready, d.Alive, d.Control} }

// Config is all a supervisor knows.
type Config struct {
	Hub      *Hub           `json:"hub"`
	Driver   driver.Command `json:"driver"`
	LogLevel string         `json:"logLevel"`
	// Hardening require: what cannot be confined does not begin.
	Hardening conf.Hardening `json:"hardening,omitempty"`
	Managers  []string       `json:"managers,omitempty"` // of systemd, for scope.Ask
}

// Hub is what it lives for.
type Hub struct {
	Network  string         `json:"network"`
	Name     string         `json:"name"` // of the hub, see rootless/hub
	StateDir string         `json:"stateDir"`
	Bridge   string         `json:"bridge"` // the interface over which members come
	Plan     plan.Interface `json:"plan"`   // of the driver's interface
	Only     *Only          `json:"only,omitempty"`
}

// String is the hub as people know it.
func (h *Hub) String() string {
	if h.Only != nil {
		return h.Only.Key.String()
	}
	return "hub " + h.Network
}

// runsPlugins says that plugins make the members' interfaces, in the hub.
func (h *Hub) runsPlugins() bool { return h.Bridge == "" }

// about is that for the log.
func (h *Hub) about() []any {
	if h.Only != nil {
		return []any{"attachment", h.Only.Key}
	}
	return []any{"hub", h.Network}
}

// Only is the one member of a private network.
type Only struct {
	Key   conf.Key       `json:"key"`
	Netns record.Netns   `json:"netns"`
	Plan  plan.Interface `json:"plan"` // of its interface
}

// Socket describes a socket of a published port.
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
	Done  bool         `json:"done,omitempty"`
	Error *types.Error `json:"error,omitempty"`
}

// DecodeReady reads what a supervisor says about its start.
func DecodeReady(from io.Reader) (*Ready, error) {
	var m Ready
	err := json.NewDecoder(from).Decode(&m)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the supervisor ended before it was ready")
	case err != nil:
		return nil, fmt.Errorf("waiting for the supervisor: %w", err)
	case !m.Done && m.Error == nil:
		return nil, errors.New("the supervisor says neither that it is ready nor why not: is it of another version of ambi?")
	}
	return &m, nil
}

// readConfig reads the configuration.
func readConfig() (*Config, error) {
	pipe := os.NewFile(configFD, "configuration pipe")
	defer pipe.Close()
	return decodeConfig(pipe)
}

// startedByKeeper says that instead of its pipe there is a keeper's socket.
func startedByKeeper() bool {
	kind, err := unix.GetsockoptInt(configFD, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && kind == unix.SOCK_SEQPACKET
}

func decodeConfig(from io.Reader) (*Config, error) {
	var config Config
	if err := json.NewDecoder(from).Decode(&config); err != nil {
		return nil, fmt.Errorf("reading the supervisor's configuration: %w", err)
	}
	if config.Hub == nil {
		return nil, errors.New("reading the supervisor's configuration: there is no hub in it")
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
