package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/root"
)

func (a *app) wrapCommand() *cobra.Command {
	o := wrapOptions{}
	c := &cobra.Command{
		Use:   "wrap CONFLIST",
		Short: "make an ambi conflist from an existing one",
		Long: `Make a conflist whose one plugin is ambi from an existing conflist or plugin
configuration. As root ambi runs the plugins that were there, with their
configurations unchanged; without root it gives containers a network of its own.

Keep an existing bridge so where a program looks for a plugin of that name, such as
nerdctl; else a conflist without delegates, whose network ambi makes itself, is faster
and needs no plugins.

The plugin portmap is left out, since ambi publishes ports itself, unless
--keep-portmap is given. CONFLIST is a file, or - for standard input; the new one
goes to standard output or into the file of --output.`,
		Example: `  ambi wrap /etc/cni/net.d/87-podman.conflist --name podman-ambi
  ambi wrap old.conflist --output /etc/cni/net.d/10-web.conflist
  ambi wrap /etc/cni/net.d/10-web.conflist --reference --name web-ambi`,
		Args: arguments(1, 1, "CONFLIST"),
		RunE: func(c *cobra.Command, args []string) error {
			if o.reference && args[0] == "-" {
				return usageError(c, "--reference needs a file that stays, not standard input")
			}
			return a.wrap(args[0], o)
		},
	}
	c.Flags().StringVar(&o.name, "name", "", "`name` of the new network (default: the same)")
	c.Flags().StringVarP(&o.output, "output", "o", "", "write to this `file`, which must not be there yet")
	c.Flags().BoolVar(&o.keepPortmap, "keep-portmap", false, "have the plugin portmap publish the ports as root")
	c.Flags().BoolVar(&o.reference, "reference", false, "name the existing conflist instead of copying its plugins, so that its changes count")
	return c
}

type wrapOptions struct {
	name, output           string
	keepPortmap, reference bool
}

// wrapping is a conflist that is to be wrapped.
type wrapping struct {
	Name         string            `json:"name"`
	CNIVersion   string            `json:"cniVersion"`
	CNIVersions  []string          `json:"cniVersions"`
	DisableCheck json.RawMessage   `json:"disableCheck"`
	DisableGC    json.RawMessage   `json:"disableGC"`
	OnlyInlined  bool              `json:"loadOnlyInlinedPlugins"`
	Plugins      []json.RawMessage `json:"plugins"`
	Type         string            `json:"type"` // of a configuration of one plugin
	ofNerdctl

	path    string // absolute; empty for standard input
	besides bool   // some plugins are in files of the folder that belongs to the conflist
}

// ofNerdctl is what nerdctl writes into the conflists that it manages; it removes,
// and shows the labels of, no others.
type ofNerdctl struct {
	NerdctlID     json.RawMessage `json:"nerdctlID,omitempty"`
	NerdctlLabels json.RawMessage `json:"nerdctlLabels,omitempty"`
}

// wrapped is the new conflist.
type wrapped struct {
	CNIVersion  string   `json:"cniVersion,omitempty"`
	CNIVersions []string `json:"cniVersions,omitempty"`
	Name        string   `json:"name"`
	ofNerdctl
	DisableCheck json.RawMessage `json:"disableCheck,omitempty"`
	DisableGC    json.RawMessage `json:"disableGC,omitempty"`
	OnlyInlined  bool            `json:"loadOnlyInlinedPlugins,omitempty"`
	Plugins      []ambiEntry     `json:"plugins"`
}

type ambiEntry struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	Delegates    any             `json:"delegates"`
	Portmap      *portmapKeys    `json:"portmap,omitempty"`
}

// portmapKeys are the keys of the standard plugin portmap that ambi has, too.
type portmapKeys struct {
	Backend json.RawMessage `json:"backend,omitempty"`
	SNAT    json.RawMessage `json:"snat,omitempty"`
}

func (a *app) wrap(from string, o wrapOptions) error {
	w, err := readWrapping(from)
	if err != nil {
		return err
	}
	list, err := a.wrapIt(w, o)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := printJSON(&text, list); err != nil {
		return err
	}
	if err := understood(list); err != nil {
		return err
	}
	if o.output == "" {
		_, err := text.WriteTo(programs(a.out))
		return err
	}
	f, err := os.OpenFile(o.output, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return hinted(fmt.Errorf("writing the conflist: %w", err), "choose a file that is not there yet, in a folder that you may write to")
	}
	_, err = text.WriteTo(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the conflist: %w", err)
	}
	fmt.Fprintf(a.errOut, "wrote %s\n", o.output)
	return nil
}

const wrapHint = "give a conflist as runtimes read them, such as a file of /etc/cni/net.d"

func readWrapping(from string) (*wrapping, error) {
	w := &wrapping{}
	var raw []byte
	var err error
	if from == "-" {
		raw, err = io.ReadAll(os.Stdin)
	} else {
		if w.path, err = filepath.Abs(from); err == nil {
			raw, err = os.ReadFile(from)
		}
	}
	if err != nil {
		return nil, hinted(fmt.Errorf("reading the conflist: %w", err), wrapHint)
	}
	if err := json.Unmarshal(raw, w); err != nil {
		return nil, hinted(fmt.Errorf("conflist %s: %s", from, jsonError(raw, err)), wrapHint)
	}
	if len(w.Plugins) == 0 && w.Type != "" {
		w.Plugins, w.OnlyInlined = []json.RawMessage{raw}, true // one plugin, without a list
	}
	if err := w.readBesides(); err != nil {
		return nil, hinted(err, wrapHint)
	}
	if len(w.Plugins) == 0 {
		return nil, hinted(fmt.Errorf("conflist %s has no plugins", from), wrapHint)
	}
	return w, nil
}

// readBesides adds the plugins in the folder that belongs to the conflist.
func (w *wrapping) readBesides() error {
	if w.OnlyInlined || w.path == "" || utils.ValidateNetworkName(w.Name) != nil {
		return nil
	}
	plugins, at, err := root.Besides(w.path, w.Name)
	if err != nil {
		return fmt.Errorf("a plugin of the conflist, %s: %w", at, err)
	}
	w.Plugins, w.besides = append(w.Plugins, plugins...), len(plugins) > 0
	return nil
}

// wrapIt makes the new conflist.
func (a *app) wrapIt(w *wrapping, o wrapOptions) (*wrapped, error) {
	list := &wrapped{
		CNIVersion: w.CNIVersion, CNIVersions: w.CNIVersions, Name: w.Name, ofNerdctl: w.ofNerdctl, DisableCheck: w.DisableCheck, DisableGC: w.DisableGC,
		// Else runtimes would run those again, after ambi, when the new one takes the
		// old one's place.
		OnlyInlined: w.besides,
	}
	if o.name != "" {
		list.Name = o.name
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, hinted(fmt.Errorf("network name %q: %s", list.Name, err.Msg), "name the new network with --name")
	}
	if o.reference && list.Name == w.Name {
		return nil, hinted(fmt.Errorf("two networks of the name %q would be side by side", w.Name), "give the new one another name with --name")
	}
	entry, err := a.entryFor(w, o)
	if err != nil {
		return nil, err
	}
	list.Plugins = []ambiEntry{*entry}
	return list, nil
}

// entryFor has the plugins that stay as delegates, and may be asked for what they
// could and for what ambi itself can.
func (a *app) entryFor(w *wrapping, o wrapOptions) (*ambiEntry, error) {
	entry := &ambiEntry{Type: "ambi", Capabilities: map[string]bool{"portMappings": true, "ips": true, "mac": true, "dns": true}}
	var kept []json.RawMessage
	for i, raw := range w.Plugins {
		d, err := conf.ParseDelegate(fmt.Sprintf("plugins[%d]", i), raw)
		if err != nil {
			return nil, hinted(err, wrapHint)
		}
		switch {
		case d.Type == "ambi":
			return nil, hinted(fmt.Errorf("network %s is one of ambi already", w.Name), "edit it as it is; docs/configuration.md has the keys")
		case d.Type == "portmap" && !o.keepPortmap && !o.reference:
			entry.Portmap = a.instead(raw)
			continue
		}
		for name, on := range d.Capabilities {
			if on {
				entry.Capabilities[name] = true
			}
		}
		kept = append(kept, raw)
	}
	if len(kept) == 0 {
		return nil, hinted(fmt.Errorf("network %s has no plugin but portmap", w.Name),
			"it publishes ports behind another plugin; put {\"type\": \"ambi\"} in its place in the conflist that it is in")
	}
	entry.Delegates = kept
	if o.reference {
		entry.Delegates = w.path
	}
	return entry, nil
}

// instead is what ambi takes over from the plugin portmap when it is left out; nil
// for nothing. What it cannot take over is told.
func (a *app) instead(raw json.RawMessage) *portmapKeys {
	fmt.Fprintln(a.errOut, "left out: portmap, since ambi publishes ports itself (--keep-portmap keeps it)")
	given := map[string]json.RawMessage{}
	_ = json.Unmarshal(raw, &given) // it was parsed
	var lost []string
	for key, value := range given {
		switch key {
		case "type", "capabilities", "snat", "backend":
		default:
			if string(value) != "null" && !strings.Contains(key, "/") {
				lost = append(lost, key)
			}
		}
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		fmt.Fprintf(a.errOut, "its keys that ambi does not have: %s\n", strings.Join(lost, ", "))
	}
	keys := &portmapKeys{Backend: given["backend"], SNAT: given["snat"]}
	if keys.Backend == nil && keys.SNAT == nil {
		return nil
	}
	return keys
}

// understood makes sure that ambi takes what we wrote.
func understood(list *wrapped) error {
	entry, err := json.Marshal(list.Plugins[0])
	if err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(entry, &all); err != nil {
		return err
	}
	for key, value := range map[string]string{"name": list.Name, "cniVersion": list.CNIVersion} {
		if all[key], err = json.Marshal(value); err != nil {
			return err
		}
	}
	whole, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if _, err := conf.Parse(whole); err != nil {
		return hinted(err, "mend the existing conflist")
	}
	return nil
}

// jsonError says in which line a text stops being JSON.
func jsonError(raw []byte, err error) string {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		before := string(raw[:min(int(syntax.Offset), len(raw))])
		return fmt.Sprintf("line %d: %v", 1+strings.Count(before, "\n"), err)
	}
	return err.Error()
}
