package bridge

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// BenchmarkAdd sets Add beside the limit: an "ip -batch" that makes the same links,
// addresses and routes, and no rules.
func BenchmarkAdd(b *testing.B) {
	l := newLab(b)
	n := l.network("web", withSubnets("10.88.0.0/16", "fd88::/64"), func(c *conf.Bridge) { c.Keep = true })
	l.join(b, n, "first")
	var ours, dels, limit []time.Duration
	for i := range max(b.N, 20) {
		m := newMember(b, n, fmt.Sprintf("c%d", i))
		l.on(b, n, func() {
			start := time.Now()
			c, err := OpenContainer("/test", m.File())
			require.NoError(b, err)
			m.result, err = n.Add(patience(b), c, m.request)
			require.NoError(b, err)
			ours = append(ours, time.Since(start))
			c.Close()
			start = time.Now()
			require.NoError(b, n.Del(patience(b), m.request.Key, m.result))
			dels = append(dels, time.Since(start))
			limit = append(limit, ipBatch(b, newSpace(b)))
		})
		m.Close()
	}
	report(b, "add-ms", ours)
	report(b, "del-ms", dels)
	report(b, "ip-batch-ms", limit)
}

func report(b *testing.B, unit string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, unit)
	b.ReportMetric(float64(all[0].Microseconds())/1000, "min-"+unit)
}

func ipBatch(b *testing.B, s *space) time.Duration {
	name := "limit"
	host := fmt.Sprintf(`link add %s address 02:00:00:00:00:01 mtu 1400 master ambi-web type veth peer name eth0 address 02:00:00:00:00:02 mtu 1400 netns /proc/%d/fd/%d
link set %s alias limit
link set %s up type bridge_slave hairpin on
`, name, os.Getpid(), s.Fd(), name, name)
	container := `link set lo up
address add 10.88.200.2/16 brd + dev eth0
address add fd88::200:2/64 dev eth0 nodad
link set eth0 up
route add default via 10.88.0.1 dev eth0
route add default via fd88::1 dev eth0
`
	start := time.Now()
	run := func(argv []string, in string) {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, string(out))
	}
	run([]string{"ip", "-batch", "-"}, host)
	run([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), s.Fd()), "ip", "-batch", "-"}, container)
	took := time.Since(start)
	run([]string{"ip", "link", "delete", name}, "")
	return took
}

// BenchmarkManyMembers says what an Add costs on a bridge that has hundreds of members,
// beside one that has two.
func BenchmarkManyMembers(b *testing.B) {
	l := newLab(b)
	n := l.network("web", withSubnets("10.88.0.0/16", ""))
	const many, sample = 1000, 20
	times := make([]time.Duration, many)
	inside := newSpace(b) // one for all, since a namespace takes longer than its interface
	for i := range times {
		m := &member{space: inside, network: n, request: &conf.Attachment{Key: conf.Key{Network: n.Name, ContainerID: fmt.Sprintf("c%d", i), IfName: fmt.Sprintf("eth%d", i)}}}
		l.on(b, n, func() {
			start := time.Now()
			c, err := OpenContainer("/test", m.File())
			require.NoError(b, err)
			m.result, err = n.Add(patience(b), c, m.request)
			require.NoError(b, err)
			times[i] = time.Since(start)
			c.Close()
		})
	}
	report(b, "first-ms", times[1:sample])
	report(b, "last-ms", times[many-sample:])
}
