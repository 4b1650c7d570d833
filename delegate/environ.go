package delegate

import (
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/conf"
)

// environ is our own environment with CNI_COMMAND changed (specification section
// 4), and for verbs that concern an attachment with its parameters: they are ours
// anyway except when DEL is replayed from a record, or in a stand-in namespace.
func environ(verb string, a *conf.Attachment, netns string, attached bool) []string {
	set := map[string]string{"CNI_COMMAND": verb}
	if len(a.Path) > 0 {
		set["CNI_PATH"] = strings.Join(a.Path, string(os.PathListSeparator))
	}
	if attached {
		set["CNI_CONTAINERID"], set["CNI_IFNAME"] = a.ContainerID, a.IfName
		set["CNI_NETNS"], set["CNI_ARGS"] = netns, cniArgs(a)
	}
	var env []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if _, ours := set[name]; !ours {
			env = append(env, pair)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	return env
}

// cniArgs is CNI_ARGS as far as plugins can read it, without the address when
// args.cni.ips asks for one: a plugin that knows args must ignore it then
// (CONVENTIONS.md, "CNI_ARGS"), and host-local takes both, and fails.
func cniArgs(a *conf.Attachment) string {
	usable := conf.UsableCNIArgs(a.CNIArgs)
	if len(a.NetConf.Args.IPs) == 0 || !strings.Contains(usable, "IP=") {
		return usable
	}
	pairs := slices.DeleteFunc(strings.Split(usable, ";"), func(pair string) bool { return strings.HasPrefix(pair, "IP=") })
	return strings.Join(pairs, ";")
}
