package conf

import (
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// Conflist is a network configuration list (CNI specification 1.1.0, section 1)
// as far as its delegates are concerned. Its own name and version do not matter:
// the delegates get those of the network that wraps it.
type Conflist struct {
	Name         string
	Plugins      []json.RawMessage // as written
	DisableCheck bool
	DisableGC    bool
	OnlyInlined  bool // loadOnlyInlinedPlugins: the folder beside the file does not count
}

// ParseConflist reads a conflist; where is its path, for messages. Keys of other
// programs are passed over.
func ParseConflist(where string, raw []byte) (*Conflist, error) {
	var l Conflist
	if !json.Valid(raw) {
		return nil, Errorf(types.ErrDecodingFailure, "key \"delegates\": conflist %s is not JSON", where)
	}
	err := decodeObjectTolerant("", raw, fields{
		"name":                   into(&l.Name, "a text"),
		"plugins":                into(&l.Plugins, "an array of plugin configurations"),
		"disableCheck":           looseBool(&l.DisableCheck),
		"disableGC":              looseBool(&l.DisableGC),
		"loadOnlyInlinedPlugins": looseBool(&l.OnlyInlined),
	}, anyKey)
	if err != nil {
		return nil, Errorf(types.ErrInvalidNetworkConfig, "key \"delegates\": conflist %s: %v", where, err)
	}
	return &l, nil
}

// DelegatesOf are the plugins of the conflist that the key delegates names.
func (n *NetConf) DelegatesOf(l *Conflist) ([]Delegate, error) {
	delegates, err := parseDelegateList("delegates("+n.DelegatesFrom+").plugins", l.Plugins)
	if err != nil {
		return nil, err
	}
	if len(delegates) == 0 {
		return nil, Invalid("delegates", n.DelegatesFrom, "the conflist has no plugins")
	}
	if err := n.notItself(delegates); err != nil {
		return nil, err
	}
	return delegates, nil
}

// notItself refuses ambi as a delegate of ambi: both would be the same attachment,
// and the inner one would wait for the outer one's lock.
func (n *NetConf) notItself(delegates []Delegate) error {
	for _, d := range delegates {
		if d.Type == n.Type {
			return Mendf(Invalid("delegates", d.Type, "ambi cannot be a delegate of itself"), "name the plugins it is to run, such as bridge")
		}
	}
	return nil
}

// conflistRefOK says whether s is an absolute path or can be a network's name.
func conflistRefOK(s string) bool {
	return !strings.ContainsRune(s, 0) && (filepath.IsAbs(s) || utils.ValidateNetworkName(s) == nil)
}

// looseBool reads what libcni takes for a boolean in a conflist: true, false, and
// both as texts.
func looseBool(target *bool) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error {
		switch strings.Trim(string(raw), `"`) {
		case "true":
			*target = true
		case "false":
			*target = false
		default:
			return Invalid(path, raw, "it is true or false")
		}
		return nil
	}
}
