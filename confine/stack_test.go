package confine

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What is given up is read by the kernel from memory, and a goroutine's stack moves when it grows:
// from any depth, with other goroutines that take what was freed, it is what was asked for.
func TestCapabilitiesFromAStackThatMoves(t *testing.T) {
	if testing.Short() {
		t.Skip("many stacks")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &now[0]))
	effective := uint64(now[0].Effective) | uint64(now[1].Effective)<<32
	permitted := uint64(now[0].Permitted) | uint64(now[1].Permitted)<<32
	if errors.Is(SetCapabilities(effective, permitted), unix.ENOTSUP) {
		t.Skip("built with cgo")
	}
	over := make(chan struct{})
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					done := make(chan struct{})
					go func() { deep(100, func() {}); close(done) }()
					<-done
				}
			}
		})
	}
	for round := range 20 {
		for depth := range 40 {
			errs := make(chan error)
			go func() { deep(depth, func() { errs <- SetCapabilities(effective, permitted) }) }()
			require.NoError(t, <-errs, "round %d, depth %d", round, depth)
			var kept [2]unix.CapUserData
			require.NoError(t, unix.Capget(&header, &kept[0]))
			require.Equal(t, now, kept, "round %d, depth %d", round, depth)
		}
	}
	close(over)
	others.Wait()
}

// deep calls something so many frames of a known size down.
//
//go:noinline
func deep(frames int, do func()) {
	var frame [48]byte
	for i := range frame {
		frame[i] = 0xff
	}
	if frames == 0 {
		do()
	} else {
		deep(frames-1, do)
	}
	runtime.KeepAlive(&frame)
}
