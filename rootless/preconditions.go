package rootless

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// MendedBy splits the remedy off an error of this room: its messages end in what to
// do about it.
func MendedBy(err error) (what, remedy string) {
	var e *types.Error
	text := fmt.Sprint(err)
	if errors.As(err, &e) {
		text = e.Msg
	}
	what, remedy, _ = strings.Cut(text, "; ")
	return what, remedy
}
