package delegate

import (
	"bytes"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// mostOutput is how much of a plugin's output is kept; a result is a few
// kilobytes. The rest is read and thrown away, so that the plugin can end.
const mostOutput = 4 << 20

// capture collects what a plugin prints into a pipe, and passes it on at once to
// another writer if there is one.
//
// A child that the plugin leaves behind may keep the pipe open for ever, so the
// end of the plugin, not the end of the file, is the end of the output.
type capture struct {
	r    *os.File
	also io.Writer // nil: nobody
	buf  bytes.Buffer
	over bool // more than mostOutput came
	done chan struct{}
}

func newCapture(r *os.File, also io.Writer) *capture {
	return &capture{r: r, also: also, done: make(chan struct{})}
}

// Bytes is what was printed, after finish.
func (c *capture) Bytes() []byte { return c.buf.Bytes() }

// Write keeps what io.Copy read; it never fails, for a plugin must not be
// stopped because nobody reads our own standard error.
func (c *capture) Write(b []byte) (int, error) {
	if c.also != nil {
		_, _ = c.also.Write(b)
	}
	room := mostOutput - c.buf.Len()
	if len(b) > room {
		c.over = true
		c.buf.Write(b[:room])
		return len(b), nil
	}
	return c.buf.Write(b)
}

// follow reads until finish stops it or nobody can write any more.
func (c *capture) follow() {
	defer close(c.done)
	_, _ = io.Copy(c, c.r)
}

// finish returns when all that the plugin, which has ended, wrote is here.
func (c *capture) finish() {
	_ = c.r.SetReadDeadline(time.Now())
	<-c.done
	_ = c.r.SetReadDeadline(time.Time{})
	c.drain()
}

// drain reads what is in the pipe now without waiting for more. It stops after a
// full pipe of the largest size an ordinary process can make: a child that keeps
// writing is not what we wait for.
func (c *capture) drain() {
	raw, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		var chunk [32 << 10]byte
		for total := 0; total < 1<<20; {
			n, err := unix.Read(int(fd), chunk[:])
			switch {
			case err == unix.EINTR:
			case n <= 0:
				return true
			default:
				total += n
				_, _ = c.Write(chunk[:n])
			}
		}
		return true
	})
}
