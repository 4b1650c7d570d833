package plugin

import (
	"context"
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// Signals are received and not ignored: what is ignored stays so in the plugins
// and programs that we start.

// standard are the descriptors 1 and 2, which would be closed when nobody had them any more.
var standard = [...]*os.File{os.Stdout, os.Stderr}

// keepWriting has a write to a pipe that nobody reads fail instead of ending the process
// half way, which Go does for descriptors 1 and 2 (os/signal, "SIGPIPE"); so copies of
// them are written to. To receive the signal would do, and costs each call two threads.
func keepWriting() {
	for i, to := range []**os.File{&os.Stdout, &os.Stderr} {
		fd, err := unix.FcntlInt(standard[i].Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil { // no descriptor is free
			signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
			return
		}
		*to = os.NewFile(uintptr(fd), standard[i].Name())
	}
}

// signalContext is what a verb runs with. A signal that would end the process ends
// the context of ADD, which then takes back what it did; DEL and GC go on, since
// half of a clean-up helps nobody; the others are ended.
func signalContext(verb string) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	if verb != "ADD" && verb != "DEL" && verb != "GC" {
		return ctx, func() { cancel(nil) }
	}
	received := make(chan os.Signal, 1)
	signal.Notify(received, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	go func() {
		for s := range received {
			if verb == "ADD" {
				cancel(conf.Errorf(types.ErrTryAgainLater, "ADD was ended by signal %q", s))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(received)
		close(received)
		cancel(nil)
	}
}

// interrupted is the error of a verb whose context ended, in the words of the
// signal.
func interrupted(ctx context.Context) error {
	var e *types.Error
	if cause := context.Cause(ctx); errors.As(cause, &e) {
		return cause
	}
	return ctx.Err()
}
