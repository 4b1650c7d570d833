package delegate

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

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
	traced := traceparent().MatchString(os.Getenv("TRACEPARENT"))
	var env []string
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		if _, ours := set[name]; !ours && passedOn(name, value, traced) {
			env = append(env, pair)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	return env
}

// traceparent is what a runtime calls its trace by (W3C Trace Context, section 3.2;
// OpenTelemetry's OTEP 258 has the names of the variables, and libcni since 1.3.1 sets them).
var traceparent = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
})

// passedOn says whether a variable of our environment goes on to a delegate. All do
// but those of a trace that is no trace: OTEP 258 has them checked by everybody on the
// way, since they come from as far as a client's request and end in plugins that run as root.
func passedOn(name, value string, traced bool) bool {
	switch name {
	case "TRACEPARENT":
		return traced
	case "TRACESTATE":
		return traced && isHeader(value, 512) // section 3.3.1.5: what is carried at least
	case "BAGGAGE":
		return isHeader(value, 8192) // W3C Baggage, section 3.3.2: the same
	}
	return true
}

// isHeader says whether a value could be that of a header in HTTP: printable ASCII, at most so many bytes.
func isHeader(value string, most int) bool {
	odd := func(r rune) bool { return r < ' ' || r > '~' }
	return len(value) <= most && !strings.ContainsFunc(value, odd)
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
