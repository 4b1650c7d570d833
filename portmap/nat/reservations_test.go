package nat

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// TestReservations shows that the sockets of a container's own engine keep its
// ports from others and not from it.
func TestReservations(t *testing.T) {
	if os.Getenv("AMBI_TEST_RESERVE") != "" {
		reserve()
	}
	const id = "0123456789abcdef"
	tcp, udp := port(conf.TCP, "127.0.0.1", 80, 80), port(conf.UDP, "", 53, 53)
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := &lab{host: newSpace(t), backend: backend}
		engine := exec.Command(os.Args[0], "-test.run=^TestReservations$", "--", "-c", id, "web")
		engine.Env = append(os.Environ(), "AMBI_TEST_RESERVE=yes")
		out, err := engine.StdoutPipe()
		require.NoError(t, err)
		l.host.do(t, func() { require.NoError(t, engine.Start()) })
		t.Cleanup(func() { _ = engine.Process.Kill(); _ = engine.Wait() })
		ready, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "reserved\n", ready)

		mine := publish(id, []string{webAddr}, tcp, udp)
		require.NoError(t, l.free(t, mine))
		l.add(t, mine)
		require.NoError(t, l.check(t, mine))
		l.del(t, mine)
		who := fmt.Sprintf("(pid %d)", engine.Process.Pid)
		for _, other := range []string{
			"0123456789abcdee",
			"web", // an ID that any program may have among its arguments
		} {
			requireCode(t, conf.ErrPortInUse, l.tryAdd(t, publish(other, []string{webAddr}, tcp)), "bound by a socket of the host", who)
			requireCode(t, conf.ErrPortInUse, l.free(t, publish(other, []string{webAddr}, udp)), "bound by a socket of the host", who)
		}
	})
}

// reserve is the engine's process. It ends with the test that started it.
func reserve() {
	if _, err := net.Listen("tcp", "127.0.0.1:80"); err != nil {
		panic(err)
	}
	if _, err := net.ListenPacket("udp", ":53"); err != nil {
		panic(err)
	}
	fmt.Println("reserved")
	time.Sleep(time.Hour)
}
