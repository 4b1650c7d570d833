package delegate

import (
	"errors"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// annotate puts a delegate's type in front of its error's message and keeps the
// code. It is a copy because skel prints the innermost *types.Error and drops
// whatever text is wrapped around it.
func annotate(delegateType string, err error) *types.Error {
	var e *types.Error
	if !errors.As(err, &e) {
		e = conf.Errorf(conf.ErrNetwork, "%v", err)
	}
	annotated := *e
	annotated.Msg = delegateType + ": " + e.Msg
	return &annotated
}

// join makes one CNI error of several: the code of the first, which is the cause
// more often than what followed it, and all messages. It is nil for none.
func join(errs []*types.Error) error {
	if len(errs) == 0 {
		return nil
	}
	joined := conf.Errorf(errs[0].Code, "%s", errs[0].Msg)
	for i, e := range errs {
		if i > 0 {
			joined.Msg += "; " + e.Msg
		}
		joined = conf.Mendf(joined, "%s", e.Details)
	}
	return joined
}

// saysAbsent says whether a delegate failed because the iptables rule or chain
// that it was to remove is not there. No code tells; these are the messages of
// iptables 1.8, of its nftables and its legacy kind.
func saysAbsent(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return strings.Contains(text, "tables v") && (strings.Contains(text, "Chain '") && strings.Contains(text, "does not exist") ||
		strings.Contains(text, "No chain/target/match by that name") ||
		strings.Contains(text, "Couldn't load target") && strings.Contains(text, "No such file or directory"))
}
