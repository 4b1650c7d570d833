package forward_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// On a host that paces by default nothing that stays in the kernel is paced, and
// clients farther away are, as the host's administrator has it.
func TestPacingIsForClientsElsewhereOnly(t *testing.T) {
	l := newLab(t)
	for _, n := range []*unit.Netns{l.host, l.container} {
		var err error
		l.in(n, func() { err = os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("bbr"), 0) })
		if err != nil {
			t.Skip("this kernel has no BBR for network namespaces: ", err)
		}
	}
	l.serveTCP("[::]:80", echo)
	l.publish(mapping(conf.TCP, 8080, 80))
	require.NoError(t, echoed(l.dial(l.host, "tcp", loopbackFour, 8080)))
	l.eventually("a client in another namespace is near, unless the processor was taken away in its handshake", func() bool {
		c := l.dial(l.client, "tcp", hostSix, 8080)
		defer c.Close()
		require.NoError(t, echoed(c))
		port := c.LocalAddr().(*net.TCPAddr).Port
		return l.algorithm(l.host, fmt.Sprintf("sport = :8080 and dport = :%d", port)) == "reno"
	})
	l.slowDown()
	require.NoError(t, echoed(l.dial(l.client, "tcp", hostFour, 8080)))
	require.Equal(t, "reno", l.algorithm(l.host, "sport = :8080 and dst 127.0.0.1"), "rootlessport to a loopback client")
	require.Equal(t, "bbr", l.algorithm(l.host, "sport = :8080 and dst 192.0.2.2"), "rootlessport to a client farther away")
	for _, client := range []string{"10.0.2.2", "192.0.2.2"} {
		require.Equal(t, "reno", l.algorithm(l.container, "dport = :80 and src "+client), "rootlessport to the service")
		require.Equal(t, "reno", l.algorithm(l.container, "sport = :80 and dst "+client), "the service")
	}
}

// slowDown makes the client's host take 30 ms and more for each small packet, as a
// network would. What may be sent at once is used up by the first of two large ones,
// and the second goes before whatever is sent in the next 0.7 s.
func (l *lab) slowDown() {
	l.t.Helper()
	run(l.t, l.client, "", "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", "16kbit", "burst", "1540", "latency", "10s")
	c := l.dial(l.client, "udp", hostFour, 9)
	for range 2 {
		_, err := c.Write(make([]byte, 1472))
		if errors.Is(err, unix.ECONNREFUSED) { // the first one has come to where nobody listens, and was not sent again
			_, err = c.Write(make([]byte, 1472))
		}
		require.NoError(l.t, err)
	}
}

// algorithm is the congestion control of the one connection in a namespace that
// the filter of ss(8) describes.
func (l *lab) algorithm(n *unit.Netns, filter string) string {
	l.t.Helper()
	out := run(l.t, n, "", "ss", "-Htni", "state", "established", filter)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(l.t, lines, 2, "%s: %s", filter, out) // the second tells about the connection
	for _, word := range strings.Fields(lines[1]) {
		if word == "bbr" || word == "reno" || word == "cubic" {
			return word
		}
	}
	return lines[1]
}
