package record

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ambi-cni/ambi/conf"
)

// State says how far ADD got.
type State string

// The states of a record.
const (
	Adding State = "adding" // write-ahead: anything between nothing and all may be there
	Ready  State = "ready"  // ADD succeeded
	// Leaving: DEL has begun, of an attachment that others share something with.
	Leaving State = "leaving"
)

// version is the layout of Record; a record of another one counts as unreadable.
const version = 1

// Record is the journal entry of one attachment.
type Record struct {
	Version int `json:"version"`
	conf.Key
	State   State     `json:"state"`
	Mode    conf.Mode `json:"mode"` // root or rootless, never auto
	Created time.Time `json:"created"`

	Netns   Netns           `json:"netns"`
	CNIArgs string          `json:"cniArgs,omitempty"`
	Path    []string        `json:"path,omitempty"`   // CNI_PATH, split
	Config  json.RawMessage `json:"config,omitempty"` // the plugin entry as received, runtimeConfig included

	Delegates    []json.RawMessage `json:"delegates,omitempty"`    // root: the chain that ran, a conflist spelled out
	DisableCheck bool              `json:"disableCheck,omitempty"` // root: of the conflist that was wrapped
	Bridge       string            `json:"bridge,omitempty"`       // that of the built-in network, when that made the interface
	Result       json.RawMessage   `json:"result,omitempty"`       // what ADD printed, cniVersion 1.1.0
	Published    *Published        `json:"published,omitempty"`    // root: what portmap/nat was asked to publish

	Supervisor *Process           `json:"supervisor,omitempty"` // rootless; with a hub that of all its members
	Hub        string             `json:"hub,omitempty"`        // rootless: the one it is a member of (rootless/hub)
	Carried    json.RawMessage    `json:"carried,omitempty"`    // rootless: what delegates made in a hub and is in the container now (rootless/link)
	Ports      []conf.PortMapping `json:"ports,omitempty"`

	saved bool
}

// Saved says whether this record has ever been written or was read.
func (r *Record) Saved() bool { return r.saved }

// Process is a process that cannot be mistaken for a later one of the same pid.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot, proc_pid_stat(5) field 22
}

// Published is what root mode published for the attachment.
type Published struct {
	Backend conf.Backend `json:"backend"`
	IPs     []netip.Addr `json:"ips"`
	SNAT    bool         `json:"snat"`
	// Reserved are the inodes of the sockets with which the container's engine holds
	// the ports for it.
	Reserved []uint32 `json:"reserved,omitempty"`
}

// New is the write-ahead record of an attachment that is about to be made.
func New(a *conf.Attachment, mode conf.Mode, netns Netns) *Record {
	return &Record{
		Version: version, Key: a.Key, State: Adding, Mode: mode, Created: time.Now().UTC().Truncate(time.Second),
		Netns: netns, CNIArgs: a.CNIArgs, Path: a.Path, Config: a.NetConf.Raw, Ports: a.Ports,
	}
}

// Attachment is the attachment as it was asked for when ADD ran. It has what could be
// read also with an error, which is about what this ambi does not understand of it.
func (r *Record) Attachment() (*conf.Attachment, error) {
	netConf, err := conf.Parse(r.Config)
	a, argsErr := conf.NewAttachment(conf.Env{
		ContainerID: r.ContainerID, NetnsPath: r.Netns.Path, IfName: r.IfName, Args: r.CNIArgs, Path: r.Path,
	}, netConf)
	if err = cmp.Or(err, argsErr); err != nil {
		return a, fmt.Errorf("configuration in the record of %s: %w", r.Key, err)
	}
	return a, nil
}

// encode keeps the configurations as they are, to the byte: encoding/json would
// take their blanks away, and delegates are to be handed the same at DEL as at ADD.
func (r *Record) encode() ([]byte, error) {
	rest := *r
	rest.Config, rest.Delegates = nil, nil
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(rest); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(`{"config":`)
	b.Write(orNull(r.Config))
	if len(r.Delegates) > 0 {
		b.WriteString(`,"delegates":[`)
		for i, raw := range r.Delegates {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(orNull(raw))
		}
		b.WriteByte(']')
	}
	b.WriteByte(',')
	b.Write(text.Bytes()[1:]) // the others, there is always one
	if !json.Valid(b.Bytes()) {
		return nil, errors.New("a configuration in it is not JSON")
	}
	return b.Bytes(), nil
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

func decode(b []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	r.saved = true
	if r.Version != version {
		return nil, fmt.Errorf("layout %d of the record is not known to this ambi (it knows %d)", r.Version, version)
	}
	if r.ContainerID == "" || r.IfName == "" || r.Network == "" {
		return nil, fmt.Errorf("the record names no attachment")
	}
	if r.Mode != conf.ModeRoot && r.Mode != conf.ModeRootless {
		return nil, fmt.Errorf("mode %q of the record is none", r.Mode)
	}
	for i, raw := range r.Delegates {
		if _, err := conf.ParseDelegate(fmt.Sprintf("delegates[%d]", i), raw); err != nil {
			return nil, fmt.Errorf("the record: %w", err)
		}
	}
	return &r, nil
}
