package forward

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// answers are the packets that a Gate was given back.
type answers chan string

func (a answers) Packet([]byte)                   {}
func (a answers) Work() bool                      { return false }
func (a answers) Answered(_ Call, packet []byte)  { a <- string(packet) }
func (a answers) Tick()                           {}
func (a answers) Failed(Call, []byte, unix.Errno) { a <- "failed" }

// TestWhatIsGivenBackIsTheLast: a container that begins again from the same port has another
// first segment.
func TestWhatIsGivenBackIsTheLast(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	gate := make(answers, 3)
	o, err := NewOutward(OutwardConfig{Gate: gate, Packets: int(r.Fd()), From: func(bool) netip.Addr { return netip.Addr{} }, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer o.Close()
	call := Call{netip.MustParseAddrPort("10.0.0.1:4000"), netip.MustParseAddrPort("192.0.2.2:80")}
	for _, packet := range []string{"first", "second"} {
		o.worker.do(func(*worker) { o.Dial(call, l.Addr().(*net.TCPAddr).AddrPort(), []byte(packet)) })
		select {
		case got := <-gate:
			require.Equal(t, packet, got)
		case <-time.After(time.Minute):
			t.Fatal("no answer")
		}
	}
}
