package scripted

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// netConf is what the plugin reads of its configuration.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	Script     Script `json:"script"`
	IPAM       struct {
		Type   string `json:"type"`
		Script Script `json:"script"`
	} `json:"ipam"`
	DNS           types.DNS `json:"dns"`
	RuntimeConfig struct {
		PortMappings []portMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	PrevResult json.RawMessage       `json:"prevResult"`
	Valid      *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	OldValid   *[]types.GCAttachment `json:"cni.dev/attachments"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

func parse(stdin []byte) (netConf, error) {
	var c netConf
	err := json.Unmarshal(stdin, &c)
	if err != nil {
		err = types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	return c, err
}

func (c *netConf) version() string {
	if c.CNIVersion == "" {
		return "0.1.0"
	}
	return c.CNIVersion
}

// prev is prevResult in the newest form; nil without one.
func (c *netConf) prev() (*types100.Result, error) {
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return nil, nil
	}
	result, err := create.CreateFromBytes(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	return checkedResult(types100.NewResultFromResult(result))
}

// checkedResult makes sure that nothing in a result is null or points nowhere.
func checkedResult(r *types100.Result, err error) (*types100.Result, error) {
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	bad := errors.New("")
	for _, i := range r.Interfaces {
		if i == nil {
			err = bad
		}
	}
	for _, ip := range r.IPs {
		if ip == nil || ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= len(r.Interfaces)) {
			err = bad
		}
	}
	for _, route := range r.Routes {
		if route == nil {
			err = bad
		}
	}
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult has an entry that is null or points to no interface", "")
	}
	return r, nil
}

// checkPorts validates the port mappings and drops those that are not published.
func (c *netConf) checkPorts() error {
	var kept []portMapping
	seen := map[string]bool{}
	for _, m := range c.RuntimeConfig.PortMappings {
		switch m.Protocol {
		case "tcp", "udp":
		case "":
			m.Protocol = "tcp"
		default:
			return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("key protocol with value %q: the protocols are tcp and udp", m.Protocol), "")
		}
		slot := fmt.Sprint(m.HostIP, m.HostPort, m.Protocol)
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 || seen[slot] {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("invalid port mapping %+v", m), "")
		}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("invalid hostIP %q", m.HostIP), "")
			}
			if !addr.Is4() {
				return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("key hostIP with value %q: the network is IPv4 only", m.HostIP), "")
			}
		}
		seen[slot] = true
		if m.HostPort != 0 {
			kept = append(kept, m)
		}
	}
	c.RuntimeConfig.PortMappings = kept
	return nil
}

// portsFree makes sure that nobody listens where ports are to be published.
func (c *netConf) portsFree() error {
	for _, m := range c.RuntimeConfig.PortMappings {
		if m.Protocol != "tcp" {
			continue
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(m.HostIP, fmt.Sprint(m.HostPort)))
		if err != nil {
			return types.NewError(101, fmt.Sprintf("host port %d is not free: %v", m.HostPort, err), "")
		}
		listener.Close()
	}
	return nil
}

// wanted is the address that the runtime asks for; args.cni.ips counts more than
// CNI_ARGS. It is not valid when none is asked for.
func (p *plugin) wanted() netip.Addr {
	texts := p.conf.Args.CNI.IPs
	for pair := range strings.SplitSeq(os.Getenv("CNI_ARGS"), ";") {
		if value, is := strings.CutPrefix(pair, "IP="); is && (len(texts) == 0 || p.broken("env-first")) {
			texts = []string{value}
		}
	}
	if len(texts) == 0 {
		return netip.Addr{}
	}
	text, _, _ := strings.Cut(texts[0], "/")
	addr, _ := netip.ParseAddr(text)
	return addr
}
