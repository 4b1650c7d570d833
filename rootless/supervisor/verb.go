package supervisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/keeper"
	"github.com/ambi-cni/ambi/rootless/link"
	"github.com/ambi-cni/ambi/rootless/netns"
)

// This file is a hub in which plugins run. They are run by the root verb of this very
// program, inside, with a stand-in for the container's namespace: what they make in it the
// caller carries over (rootless/link).

// standInOf is the stand-in of a member.
func standInOf(member conf.Key) netns.StandIn {
	sum := sha256.Sum256([]byte(member.String()))
	return netns.StandInOf("ambi-" + hex.EncodeToString(sum[:10]))
}

func (h *hub) openStandIn(r request) ([]*os.File, error) {
	if r.Member == nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "control request %s: no member", r.Op)
	}
	s := standInOf(*r.Member)
	if err := h.inside.MakeStandIn(s); err != nil {
		return nil, err
	}
	var place *link.Place
	if err := h.inside.InStandIn(s, func() (err error) {
		place, err = link.Here()
		return err
	}); err != nil {
		return nil, fmt.Errorf("the namespace in place of the container's: %w", err)
	}
	return place.Files(), nil
}

// run runs a verb. It owes its rights to execve(2), as the driver does. With its caller it
// ends, as on the host: or else what hangs in it would keep the next verb waiting.
func (h *hub) run(r request) (*Ran, error) {
	if r.Member == nil || r.Verb == nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "control request %s: no member or no verb", r.Op)
	}
	s := standInOf(*r.Member)
	if r.Verb.Gone {
		if err := h.inside.RemoveStandIn(s); err != nil {
			return nil, fmt.Errorf("removing the namespace in place of the container's: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(r.caller)
	defer cancel()
	defer context.AfterFunc(h.ending, cancel)()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{"ambi"}
	cmd.Dir = "/"
	// The thread that starts it ends with this process, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(slices.Clone(keeper.Environment),
		"CNI_COMMAND="+r.Verb.Command, "CNI_CONTAINERID="+r.Member.ContainerID, "CNI_IFNAME="+r.Member.IfName,
		"CNI_NETNS="+s.Path, "CNI_PATH="+r.Verb.Path, "CNI_ARGS="+r.Verb.Args,
	)
	for _, name := range TraceVariables {
		if value, has := r.Verb.Trace[name]; has {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(r.Verb.Config), &out, os.Stderr
	if err := h.inside.Start(cmd.Start); err != nil {
		return nil, fmt.Errorf("running %s in the hub: %w", r.Verb.Command, err)
	}
	err := cmd.Wait()
	if _, ended := err.(*exec.ExitError); err != nil && !ended { //nolint:errorlint // Wait returns it as it is
		return nil, fmt.Errorf("running %s in the hub: %w", r.Verb.Command, err)
	}
	if err == nil && r.Verb.Command == "DEL" {
		if err := h.inside.RemoveStandIn(s); err != nil {
			h.log.Warn("removing the namespace in place of a member's", "error", err)
		}
	}
	return &Ran{Out: out.Bytes(), Failed: err != nil, StandIn: s.Path}, nil
}
