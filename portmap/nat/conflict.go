package nat

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// isForPeople says whether an error already has its CNI code and remedy.
func isForPeople(err error) bool {
	var e *types.Error
	return errors.As(err, &e)
}

// inUse is the error of a port that another attachment publishes.
func inUse(s slot, owner string) error {
	by := "published by another attachment"
	if k, ok := parseOwner(owner); ok {
		by = fmt.Sprintf("published by container %s of network %s (interface %s)", k.ContainerID, k.Network, k.IfName)
	}
	return conf.Mendf(conf.Errorf(conf.ErrPortInUse, "host port %s is in use: %s", s, by), "choose another port or host address, or remove that container (\"ambi gc\" if it is gone)")
}

// alreadyPublished is the error of a second ADD without a DEL between.
func alreadyPublished(k conf.Key) error {
	return conf.Mendf(conf.Errorf(conf.ErrPortInUse, "ports of container %s of network %s (interface %s) are published already", k.ContainerID, k.Network, k.IfName), "DEL comes before another ADD")
}

// isConflict says whether an error is that of a port in use.
func isConflict(err error) bool {
	var e *types.Error
	return errors.As(err, &e) && e.Code == conf.ErrPortInUse
}
