package cli

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// What a kernel is too old for is said before ADD fails.
func TestDoctorJudgesTheKernel(t *testing.T) {
	for _, tt := range []struct {
		release        string
		root, rootless verdict
	}{
		{"4.19.0-27-amd64", fail, fail},
		{"5.2.21", fail, fail},
		{"5.4.0-216-generic", warn, fail},
		{"5.6.0", warn, warn},
		{"5.10.0-33-amd64", warn, warn},
		{"5.15.0-161-generic", pass, pass},
		{"6.1", pass, pass},
		{"10.0-rc1", pass, pass},
	} {
		for mode, want := range map[conf.Mode]verdict{conf.ModeRoot: tt.root, conf.ModeRootless: tt.rootless} {
			d := &doctor{mode: mode}
			d.judgeKernel(tt.release)
			require.Len(t, d.Checks, 1)
			require.Equal(t, want, d.Checks[0].Status, "%s, %s: %s", tt.release, mode, d.Checks[0].Seen)
		}
	}
}
