package suite

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// lab is where one point is tried: a machine, the plugin under test with its
// configuration, and what has been seen so far.
//
// Its methods end the point when they fail: broken for what is the suite's own
// trouble, fail for the plugin's, inapplicable when the point does not concern the
// plugin.
type lab struct {
	machine *machine
	job     *job
	network *network
	seen    []string
	clean   []func()

	containers int
	versions   []string // that the plugin says it speaks
	ports      int
}

// verdict ends a point.
type verdict struct {
	status Status
	why    string
}

func (l *lab) fail(format string, args ...any) {
	panic(verdict{Failed, fmt.Sprintf(format, args...)})
}

func (l *lab) inapplicable(format string, args ...any) {
	panic(verdict{NotApplicable, fmt.Sprintf(format, args...)})
}

func (l *lab) broken(format string, args ...any) {
	panic(verdict{Failed, "trouble of the suite, not of the plugin: " + fmt.Sprintf(format, args...)})
}

func (l *lab) must(err error) {
	if err != nil {
		l.broken("%v", err)
	}
}

// saw notes what a person who reads the result wants to know.
func (l *lab) saw(format string, args ...any) {
	l.seen = append(l.seen, fmt.Sprintf(format, args...))
}

// subject is the binary under test.
func (l *lab) subject() string { return stage + "/bin/" + l.job.Type }

// supported are the versions that the plugin lists.
func (l *lab) supported() []string {
	if l.versions == nil {
		o := l.call("VERSION", object{}.with("cniVersion", l.network.version))
		var answer struct {
			SupportedVersions []string `json:"supportedVersions"`
		}
		if err := json.Unmarshal(o.stdout, &answer); err != nil || len(answer.SupportedVersions) == 0 {
			l.fail("%s, which is no list of versions", o)
		}
		l.versions = answer.SupportedVersions
	}
	return l.versions
}

func (l *lab) speaks(version string) bool { return slices.Contains(l.supported(), version) }

// needs makes a point one for plugins that speak a version.
func (l *lab) needs(version, verb string) {
	if !l.speaks(version) {
		l.inapplicable("the plugin lists no %s, the version that brought %s", version, verb)
	}
}

// needsInterface makes a point one for plugins that create the interface.
func (l *lab) needsInterface(why string) {
	if l.network.chained() {
		l.inapplicable("the plugin adjusts an interface that another one made (S2, ADD): %s", why)
	}
}

func (l *lab) needsPorts() {
	if !l.network.declares("portMappings") {
		l.inapplicable("the configuration does not declare the capability portMappings, so a runtime sends none (S3, runtimeConfig)")
	}
}

// newContainer makes a namespace that goes with the point.
func (l *lab) newContainer() *container {
	l.containers++
	c, err := l.machine.newContainer(fmt.Sprintf("c%d", l.containers))
	if err != nil {
		l.broken("a container's namespace: %v", err)
	}
	l.clean = append(l.clean, c.destroy)
	return c
}

// snapshot looks at the host and at these containers.
func (l *lab) snapshot(containers ...*container) snapshot.Snapshot {
	s := snapshot.Options{Ignore: []string{stage}}.Take()
	for _, c := range containers {
		s += snapshot.Network("nsenter", "--net="+c.path)
	}
	return s
}

// settle is how long the kernel may take to take a namespace apart, after its last
// process has gone: on a busy host with many namespaces it queues for that.
const settle = time.Minute

// unchanged fails when the machine is not as it was.
func (l *lab) unchanged(before snapshot.Snapshot, when string, containers ...*container) {
	if d := snapshot.Await(settle, before, func() snapshot.Snapshot { return l.snapshot(containers...) }); d != "" {
		l.fail("%s the machine is not as before (- was, + is): %s", when, oneLine(d))
	}
}

func oneLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	const most = 8
	more := ""
	if len(lines) > most {
		more = fmt.Sprintf(" | and %d lines more", len(lines)-most)
		lines = lines[:most]
	}
	return strings.Join(lines, " | ") + more
}

// freshPorts are host ports that this point has not used yet, as runtimeConfig.
func (l *lab) freshPorts() object {
	if !l.network.declares("portMappings") {
		return nil
	}
	return object{}.with("portMappings", []portMapping{l.freshPort()})
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func (l *lab) freshPort() portMapping {
	l.ports++
	return portMapping{HostPort: 20000 + l.ports, ContainerPort: 80, Protocol: "tcp"}
}
