package plugin

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestChooseMode(t *testing.T) {
	able, powerless, noOwner := rights{netAdmin: true, ownsNetns: true}, rights{ownsNetns: true}, rights{netAdmin: true}
	for _, tt := range []struct {
		name   string
		asked  conf.Mode
		rights rights
		want   conf.Mode
	}{
		{"root on the host", conf.ModeAuto, able, conf.ModeRoot},
		{"an unprivileged user", conf.ModeAuto, rights{}, conf.ModeRootless},
		{"fake root in the host's network namespace", conf.ModeAuto, noOwner, conf.ModeRootless},
		{"root of a container without CAP_NET_ADMIN", conf.ModeAuto, powerless, conf.ModeRootless},
		{"root asks for root", conf.ModeRoot, able, conf.ModeRoot},
		{"root asks for rootless", conf.ModeRootless, able, conf.ModeRootless},
		{"a user asks for rootless", conf.ModeRootless, rights{}, conf.ModeRootless},
		{"a configuration that is not valid, on DEL", "", able, conf.ModeRoot},
		{"the same as a user", "", rights{}, conf.ModeRootless},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := chooseMode(tt.asked, tt.rights)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestModeRootWithoutTheRights(t *testing.T) {
	for name, tt := range map[string]struct {
		rights rights
		why    string
	}{
		"no capability":            {rights{ownsNetns: true}, "CAP_NET_ADMIN"},
		"nothing at all":           {rights{}, "CAP_NET_ADMIN"},
		"somebody else's network":  {rights{netAdmin: true}, "owned by our own user namespace"},
		"and it names which it is": {rights{netAdmin: true}, "net:["},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := chooseMode(conf.ModeRoot, tt.rights)
			var e *types.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, types.ErrInvalidNetworkConfig, e.Code)
			require.Contains(t, e.Msg, `"mode"`)
			require.Contains(t, e.Msg, `"root"`)
			require.Contains(t, e.Msg, tt.why)
			require.Equal(t, "run as root, or set mode to auto or rootless", e.Details)
		})
	}
}
