package supervisor

import (
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/driver"
)

// publisher is a driver that publishes each port once.
type publisher struct{ ports []conf.PortMapping }

func (p *publisher) Add(m conf.PortMapping) error {
	if slices.Contains(p.ports, m) {
		return errors.New("it is taken")
	}
	p.ports = append(p.ports, m)
	return nil
}

func (p *publisher) Remove(m conf.PortMapping) error {
	p.ports = slices.DeleteFunc(p.ports, func(have conf.PortMapping) bool { return have == m })
	return nil
}

func (p *publisher) Check([]conf.PortMapping) error { return nil }

// TestByDriverAgain: a request that got no answer is asked again.
func TestByDriverAgain(t *testing.T) {
	d := &publisher{}
	told := map[conf.PortMapping]bool{}
	p := &byDriver{kind: driver.Of("slirp4netns"), driver: d, changed: func(m conf.PortMapping, published bool) { told[m] = published }}
	m := conf.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: conf.TCP}
	for range 2 {
		require.NoError(t, p.add(m))
		require.Equal(t, []conf.PortMapping{m}, d.ports)
		require.Len(t, p.stats(), 1)
		require.True(t, told[m])
	}
	for range 2 {
		require.NoError(t, p.remove(m))
		require.Empty(t, d.ports)
	}
	require.False(t, told[m])
}
