package deaths

import (
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait. It only ends what hangs.
const patience = 2 * time.Minute

// within runs f on a thread in a network namespace, which ends with it: what it opens is there.
func within(netns string, f func() error) error {
	if netns == "" {
		return f()
	}
	return onThread(func() error {
		file, err := os.Open(netns)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// dial asks the other end whether it is there after a second in which nothing came: of what a
// driver has carried that was killed it may know nothing.
func dial(netns, network, addr string, wait time.Duration) (conn net.Conn, err error) {
	err = within(netns, func() (err error) {
		conn, err = (&net.Dialer{Timeout: wait, KeepAlive: time.Second}).Dial(network, addr)
		return err
	})
	return conn, err
}
