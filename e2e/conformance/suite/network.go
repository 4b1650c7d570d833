package suite

import (
	"encoding/json"
	"errors"
	"fmt"
)

// network is the configuration under test: the plugin's own, and those of the
// plugins before it in the conflist.
type network struct {
	version string
	name    string
	subject object
	before  []object
}

// parseNetwork reads a configuration of one plugin, or a conflist in which one entry
// is of the type. What follows that entry is not run.
func parseNetwork(raw []byte, pluginType string) (*network, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	n := &network{version: o.text("cniVersion"), name: o.text("name")}
	if n.name == "" || n.version == "" {
		return nil, errors.New("the configuration needs cniVersion and name")
	}
	entries := []object{o.without("cniVersion", "name")}
	if list, is := o["plugins"]; is {
		entries = nil
		if err := json.Unmarshal(list, &entries); err != nil {
			return nil, fmt.Errorf("key plugins: %w", err)
		}
	}
	for i, entry := range entries {
		if entry.text("type") == pluginType {
			n.subject, n.before = entry, entries[:i]
			return n, nil
		}
	}
	return nil, fmt.Errorf("no plugin of type %q in the configuration", pluginType)
}

func (n *network) chained() bool { return len(n.before) > 0 }

// declares says whether the plugin takes a capability.
func (n *network) declares(capability string) bool { return declares(n.subject, capability) }

func declares(entry object, capability string) bool {
	var capabilities map[string]bool
	_ = json.Unmarshal(entry["capabilities"], &capabilities)
	return capabilities[capability]
}

// request is the request configuration of one entry (specification section 3,
// "Deriving request configuration from plugin configuration").
func (n *network) request(entry object, version string, runtimeConfig object, prev json.RawMessage) object {
	o := entry.without("capabilities").with("cniVersion", version).with("name", n.name)
	wanted := object{}
	for capability, value := range runtimeConfig {
		if declares(entry, capability) {
			wanted[capability] = value
		}
	}
	if len(wanted) > 0 {
		o = o.with("runtimeConfig", wanted)
	}
	if prev != nil {
		o = o.with("prevResult", prev)
	}
	return o
}
