package nat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// retry repeats an attempt that met a change made by someone else, until one does
// not or ctx ends: ERESTART is the kernel's answer to a transaction against an
// older generation of the ruleset. Each loser means that another change won, so all
// together always get on; the pause is random so that losers do not meet again.
func retry(ctx context.Context, attempt func() error) error {
	const longest = 20 * time.Millisecond
	pause := 200 * time.Microsecond
	for {
		err := attempt()
		if !errors.Is(err, errInterrupted) && !errors.Is(err, unix.ERESTART) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("publishing host ports: %w, until: %w", err, ctx.Err())
		case <-time.After(rand.N(pause)):
		}
		pause = min(2*pause, longest)
	}
}
