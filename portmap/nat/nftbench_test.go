package nat

import (
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// benchmarkSizes are numbers of ports of one attachment.
var benchmarkSizes = []int{1, 10, 100, 1000}

// BenchmarkAdd publishes N ports beside 0 or 10,000 others of 1000 containers.
// The Del between is not counted.
func BenchmarkAdd(b *testing.B) {
	benchmark(b, func(b *testing.B, backend Backend, p Published) {
		for b.Loop() {
			require.NoError(b, backend.Add(b.Context(), p))
			b.StopTimer()
			require.NoError(b, backend.Del(b.Context(), p))
			b.StartTimer()
		}
	})
}

// BenchmarkDel is the other half of BenchmarkAdd.
func BenchmarkDel(b *testing.B) {
	benchmark(b, func(b *testing.B, backend Backend, p Published) {
		for b.Loop() {
			b.StopTimer()
			require.NoError(b, backend.Add(b.Context(), p))
			b.StartTimer()
			require.NoError(b, backend.Del(b.Context(), p))
		}
	})
}

func benchmark(b *testing.B, f func(*testing.B, Backend, Published)) {
	b.Helper()
	for _, others := range []int{0, 1000} {
		for _, n := range benchmarkSizes {
			b.Run(fmt.Sprintf("ports=%d/others=%d", n, others*10), func(b *testing.B) {
				// Not under b.Loop's thread: the namespace is a thread's.
				newSpace(b).do(b, func() {
					backend, err := Open(conf.BackendNFTables)
					require.NoError(b, err)
					crowd(b, backend, others)
					p := publish("measured", []string{"10.1.0.1"})
					for i := range n {
						p.Ports = append(p.Ports, port(conf.TCP, "", uint16(20000+i), 80))
					}
					f(b, backend, p)
				})
			})
		}
	}
}

// crowd publishes ten ports for each of n containers.
func crowd(b *testing.B, backend Backend, n int) {
	b.Helper()
	all := make([]Published, n)
	for i := range all {
		all[i] = publish(fmt.Sprintf("c%d", i), []string{fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)})
		for k := range 10 {
			all[i].Ports = append(all[i].Ports, port(conf.TCP, "", uint16(30000+10*i+k), 80))
		}
	}
	_, err := backend.Restore(b.Context(), all)
	require.NoError(b, err)
}

// BenchmarkConnect opens connections through a published port, the last one of
// 1 or 10,001.
func BenchmarkConnect(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprintf("others=%d", others*10), func(b *testing.B) {
			l := newLab(b, conf.BackendNFTables)
			l.web.serve(b, "web", 80)
			l.host.do(b, func() {
				crowd(b, backend{nftRules{}}, others)
				require.NoError(b, backend{nftRules{}}.Add(b.Context(), publishWeb(port(conf.TCP, "", 8080, 80))))
			})
			l.client.do(b, func() {
				for b.Loop() {
					c, err := net.Dial("tcp", hostAddr+":8080")
					require.NoError(b, err)
					// No TIME_WAIT, which would use up the client's ports.
					require.NoError(b, c.(*net.TCPConn).SetLinger(0))
					require.NoError(b, c.Close())
				}
			})
		})
	}
}
