package supervisor

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// A burst is answered at once, and what goes on and on at its pace.
func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	for range requestsInABurst {
		require.Zero(t, p.wait(now))
	}
	for n := range 10 {
		require.Equal(t, time.Duration(n+1)*time.Second/requestsASecond, p.wait(now))
	}
	now = now.Add(time.Second)
	waited := 0
	for range requestsInABurst {
		if p.wait(now) > 0 {
			waited++
		}
	}
	require.Equal(t, 10, waited, "a second has let so many more, less those that waited")
	now = now.Add(time.Hour)
	for range requestsInABurst {
		require.Zero(t, p.wait(now))
	}
	require.Positive(t, p.wait(now), "an hour of silence lets no more than a burst")
}

func TestLastingRequestsAreShared(t *testing.T) {
	l := newLasting()
	for range lastingMost / 2 {
		require.Equal(t, mayBegin, l.begin(1))
	}
	require.Equal(t, tooManyOfOne, l.begin(1), "one process leaves as many to others")
	for process := range int32(lastingMost / 2) {
		require.Equal(t, mayBegin, l.begin(10+process))
	}
	began := make(chan verdict)
	for process := range int32(lastingWaitMost) {
		go func() { began <- l.begin(10000 + process) }()
	}
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.wait == lastingWaitMost
	}, time.Minute, time.Millisecond)
	require.Equal(t, tooMany, l.begin(9))
	require.Equal(t, tooMany, l.begin(0), "who cannot be told apart waits as well")
	for range lastingMost / 2 {
		l.end(1)
	}
	for range lastingWaitMost {
		require.Equal(t, mayBegin, <-began)
	}
	for process := range int32(lastingWaitMost) {
		l.end(10000 + process)
	}
	for process := range int32(lastingMost / 2) {
		l.end(10 + process)
	}
	for range lastingMost {
		require.Equal(t, mayBegin, l.begin(0))
	}
	for range lastingMost {
		l.end(0)
	}
	require.Empty(t, l.of)
	require.Zero(t, l.all)
}

// One process that asks for what takes long as often as it can, and many times for the rest: it hears
// that it is too much, and another question is answered meanwhile.
func TestControlSocketBounds(t *testing.T) {
	goOn := make(chan struct{})
	var atOnce, most int
	var mu sync.Mutex
	path := startControl(t, func(r request, _ []*os.File) reply {
		if r.Op == opAwait {
			<-goOn
			return reply{Status: &Status{PID: 9}}
		}
		mu.Lock()
		atOnce++
		most = max(most, atOnce)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		atOnce--
		mu.Unlock()
		return reply{Status: &Status{PID: 7}}
	})
	answers := make(chan error)
	for range lastingMost/2 + 1 {
		go func() {
			_, err := path.call(request{Op: opAwait})
			answers <- err
		}()
	}
	unit.RequireError(t, <-answers, types.ErrTryAgainLater, "as often as it may be for one at once")
	var brief sync.WaitGroup
	for range 4 * briefMost {
		brief.Go(func() {
			answer, err := path.call(request{Op: opStatus})
			if assert.NoError(t, err) {
				assert.Equal(t, 7, answer.PID)
			}
		})
	}
	brief.Wait()
	mu.Lock()
	require.LessOrEqual(t, most, briefMost)
	mu.Unlock()
	close(goOn)
	for range lastingMost / 2 {
		require.NoError(t, <-answers)
	}
}
