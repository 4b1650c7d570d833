package rootless

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/link"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// In the hub of a network with delegates the root verb runs, as it does on the host, with a
// namespace that stands in for the container's. What the delegates made in there is carried
// into the container, and at DEL taken back for those that made it.

// makeByPlugins has the delegates make the interface.
func (n *Network) makeByPlugins(h hub.Hub, c *insideContainer, a *conf.Attachment) (*types100.Result, error) {
	if err := c.lacks(a.IfName); err != nil {
		return nil, err
	}
	standIn, err := openStandIn(h, a.Key)
	if err != nil {
		return nil, err
	}
	defer standIn.Close()
	fresh, err := link.Observe(standIn)
	if err != nil {
		return nil, fmt.Errorf("the namespace in place of the container's: %w", err)
	}
	ran, err := n.runInside(h, a, "ADD", false)
	if err != nil {
		return nil, err
	}
	result, err := readResult(a, ran.Out)
	if err != nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "the result of the delegates: %v", err)
	}
	n.step("delegates")
	carried, err := link.Carry(standIn, c.place, fresh, nil)
	if err != nil {
		return nil, err
	}
	for _, i := range result.Interfaces {
		if i != nil && i.Sandbox == ran.StandIn {
			i.Sandbox = a.NetnsPath
		}
	}
	if n.Record.Carried, err = json.Marshal(carried); err != nil {
		return nil, err
	}
	n.step("carry it into the container")
	return result, n.Store.Save(n.Record)
}

func openStandIn(h hub.Hub, key conf.Key) (*link.Place, error) {
	files, err := controlOfHub(h).StandIn(key)
	if err != nil {
		return nil, fmt.Errorf("the hub: %w", mute(err))
	}
	return link.FromFiles(files)
}

// runInside runs a verb of root mode in the hub. Its own error is returned as such.
func (n *Network) runInside(h hub.Hub, a *conf.Attachment, command string, gone bool) (*supervisor.Ran, error) {
	config, err := insideConfig(a)
	if err != nil {
		return nil, err
	}
	ran, err := controlOfHub(h).Run(a.Key, supervisor.Verb{
		Command: command, Path: strings.Join(a.Path, ":"), Args: a.CNIArgs, Config: config, Gone: gone, Trace: trace(),
	})
	if err != nil {
		return nil, fmt.Errorf("the hub: %w", mute(err))
	}
	if !ran.Failed {
		return ran, nil
	}
	var e types.Error
	if json.Unmarshal(ran.Out, &e) != nil || e.Msg == "" {
		return nil, conf.Errorf(conf.ErrNetwork, "%s in the hub failed and does not say why; the hub's log has more", command)
	}
	return nil, &e
}

// trace is what our environment says of the trace that we belong to. Who runs plugins
// judges it (package delegate).
func trace() map[string]string {
	const most = 8192 // bytes of the longest, BAGGAGE
	t := map[string]string{}
	for _, name := range supervisor.TraceVariables {
		if value, has := os.LookupEnv(name); has && len(value) <= most {
			t[name] = value
		}
	}
	return t
}

// insideConfig is the plugin entry for root mode in the hub. The ports are published from
// outside, and what it keeps in files stays in the hub.
func insideConfig(a *conf.Attachment) (json.RawMessage, error) {
	var entry, part map[string]json.RawMessage
	if err := json.Unmarshal(a.NetConf.Raw, &entry); err != nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "the network configuration: %v", err)
	}
	entry["mode"] = json.RawMessage(`"root"`)
	delete(entry, "stateDir")
	for _, key := range []string{"runtimeConfig", "capabilities"} {
		if json.Unmarshal(entry[key], &part) == nil && part != nil {
			delete(part, "portMappings")
			entry[key], _ = json.Marshal(part)
		}
		part = nil
	}
	return json.Marshal(entry)
}

// readResult is a result of any version, in the newest form. One that does not say its
// version has that of the configuration.
func readResult(a *conf.Attachment, out []byte) (*types100.Result, error) {
	var says struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(out, &says); err != nil {
		return nil, err
	}
	if says.CNIVersion == "" {
		says.CNIVersion = a.NetConf.CNIVersion
	}
	result, err := create.Create(says.CNIVersion, out)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(result)
}

// unmakeByPlugins takes what was carried back to the hub, if the container is there, and has
// the delegates undo it.
func (n *Network) unmakeByPlugins(h hub.Hub, a *conf.Attachment) error {
	c, err := n.openRecorded()
	if err != nil {
		return err
	}
	if c == nil {
		_, err := n.runInside(h, a, "DEL", true)
		return err
	}
	defer c.close()
	standIn, err := openStandIn(h, a.Key)
	if err != nil {
		return err
	}
	defer standIn.Close()
	if err := n.takeBack(c, standIn, a); err != nil {
		return err
	}
	_, err = n.runInside(h, a, "DEL", false)
	return err
}

func (n *Network) takeBack(c *insideContainer, standIn *link.Place, a *conf.Attachment) error {
	if carried, err := n.carried(); err == nil && carried != nil {
		return carried.Back(c.place, standIn)
	}
	// ADD was killed while it carried, or what the record says of that cannot be read, as CHECK
	// tells. ADD had made sure that there was no such interface.
	l, err := c.place.Link(a.IfName)
	if err != nil || l == nil {
		return err
	}
	_, err = link.Move(c.place, standIn, l.Index, l.Name)
	return err
}

// carried is what ADD has carried into the container; nil when it did not get there.
func (n *Network) carried() (*link.Carried, error) {
	if n.Record == nil || n.Record.Carried == nil {
		return nil, nil
	}
	var c link.Carried
	if err := json.Unmarshal(n.Record.Carried, &c); err != nil {
		return nil, fmt.Errorf("what the record of %s says was carried into the container: %w", n.Record.Key, err)
	}
	return &c, nil
}

// checkCarried compares the container with what was carried into it.
func (n *Network) checkCarried(c *insideContainer) error {
	carried, err := n.carried()
	if err != nil || carried == nil {
		return err
	}
	if err := carried.Check(c.place); err != nil {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "attachment %s: %s", n.Record.Key, strings.ReplaceAll(err.Error(), "\n", ", ")), "call DEL and ADD again")
	}
	return nil
}

// openRecorded opens the container of the record; nil when it is gone, or closed to us.
// That something else fails, such as a fork, says nothing of the container.
func (n *Network) openRecorded() (*insideContainer, error) {
	if n.Record == nil || n.Record.Netns.Gone() {
		return nil, nil
	}
	ns, err := openNamespace(n.Record.Netns.Path)
	if err != nil {
		if failed := unopenable(n.Record.Netns.Path); failed != nil {
			return nil, failed
		}
		if ns, err = openNamespace(n.Record.Netns.Path); err != nil {
			return nil, nil
		}
	}
	if !ns.Same(n.Record.Netns) {
		ns.Close()
		return nil, nil
	}
	c, err := placed(ns)
	if link.Refused(err) {
		return nil, nil
	}
	return c, err
}

// unopenable is why a file cannot be opened, when that is neither its absence nor a lack of
// rights.
func unopenable(path string) error {
	f, err := os.Open(path)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ESRCH):
		return nil
	}
	return err
}
