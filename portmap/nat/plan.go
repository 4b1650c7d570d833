package nat

import "errors"

// plan is a record resolved to what belongs in the kernel.
type plan struct {
	Published
	forwards []forward
	hostIf   string
}

// plans resolves records; one that cannot be is an error beside the others.
func plans(all []Published) ([]plan, error) {
	var ready []plan
	var errs []error
	for _, p := range all {
		if len(p.Ports) == 0 {
			continue
		}
		fs, err := p.forwards()
		if err == nil {
			err = validOwner(p.Owner)
		}
		var hostIf string
		if err == nil {
			hostIf, err = hostInterface(p)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ready = append(ready, plan{p, fs, hostIf})
	}
	return ready, errors.Join(errs...)
}

// settleAll is settle for every restored attachment: one look through connection
// tracking for all of them.
func settleAll(ready []plan, done []forward) error {
	var errs []error
	for _, p := range ready {
		errs = append(errs, allowLocalnet(p.Published, p.forwards, p.hostIf))
	}
	return errors.Join(append(errs, forgetElsewhere(done))...)
}
