package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// callVerb runs a CNI verb that concerns no single attachment, as a runtime would:
// by executing this program anew. So that a person gets what a runtime gets. The
// error is the verb's own.
func callVerb(ctx context.Context, verb string, config map[string]any) error {
	stdin, err := json.Marshal(config)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{self()}
	cmd.Env = append(withoutCNI(os.Environ()), "CNI_COMMAND="+verb, "CNI_PATH="+cniPath())
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	if err == nil {
		return nil
	}
	var e types.Error
	if json.Unmarshal(out.Bytes(), &e) == nil && e.Msg != "" {
		return &e
	}
	if said := strings.TrimSpace(errOut.String()); said != "" {
		err = errors.New(said)
	}
	return fmt.Errorf("%s: %w", verb, err)
}

func withoutCNI(environ []string) []string {
	var kept []string
	for _, e := range environ {
		if !strings.HasPrefix(e, "CNI_") {
			kept = append(kept, e)
		}
	}
	return kept
}
