package supervisor

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/ambi-cni/ambi/scope"
)

// leaveUnit has systemd put the processes of the hub into a scope of their own, out of the unit of
// whoever called ADD. What they start later is in it, too.
func (s *supervisor) leaveUnit() {
	const longest = time.Minute
	if len(s.managers) == 0 {
		return
	}
	<-s.started
	s.awaitKeeper()
	for pause := time.Second; !s.leaving() && !scope.Out(); pause *= 8 {
		err := s.askForScope()
		if err == nil {
			return
		}
		s.log.Warn("the network stays in the unit in which it was started, and ends with that", "error", err)
		if pause > longest {
			return
		}
		time.Sleep(pause)
	}
}

// awaitKeeper goes on without one where there is none for long.
func (s *supervisor) awaitKeeper() {
	const patience, pause = 10 * time.Second, 10 * time.Millisecond
	for deadline := time.Now().Add(patience); s.twin.process() == 0 && time.Now().Before(deadline); {
		time.Sleep(pause)
	}
}

// askForScope keeps other drivers from being started meanwhile, which would stay where this process
// was: so it has little patience with a manager that does not answer. One that is only slow has
// a scope for it at the next try.
func (s *supervisor) askForScope() error {
	const patience = 2 * time.Second
	s.work.Lock()
	defer s.work.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return scope.Ask(ctx, s.managers, s.hub.config.Network, s.processes()...)
}

// processes are all of the hub.
func (s *supervisor) processes() []int {
	all := []int{os.Getpid(), s.twin.process()}
	s.mu.Lock()
	if s.driver != nil {
		all = append(all, s.driver.PID())
	}
	s.mu.Unlock()
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(pid int) bool { return pid <= 0 })
}
