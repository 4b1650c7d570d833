package scope

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzCgroup: whatever cgroups an engine has us in, and whatever a network is called, whether we are in a
// scope of ours is told by its name alone, and that name is one of systemd's.
func FuzzCgroup(f *testing.F) {
	f.Add("0::/user.slice/ambi-web-12.scope\n", "web")
	f.Add("12:pids:/ambi-x.scope\n0::/\n", "a/b\xff")
	f.Add("0::", strings.Repeat("x", 300))
	f.Add("::\n:\n0::/a\\x2d.scope/../ambi-.scope", "-")
	f.Fuzz(func(t *testing.T, lines, network string) {
		_ = inScope(lines)
		name := unitName(network)
		require.Less(t, len(name), 256)
		require.Regexp(t, `^ambi-[A-Za-z0-9_.\\]*-[0-9]+\.scope$`, name)
		require.True(t, inScope("0::/user.slice/"+name+"\n"))
	})
}
