package link

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkEnter is what a verb waits for to reach a container.
func BenchmarkEnter(b *testing.B) {
	c := newContainer(b)
	for b.Loop() {
		p, err := Enter(c.netns, c.owner)
		require.NoError(b, err)
		p.Close()
	}
}

// BenchmarkObserve is the reading of all sysctls.
func BenchmarkObserve(b *testing.B) {
	p := newContainer(b).enter(b)
	for b.Loop() {
		_, err := Observe(p)
		require.NoError(b, err)
	}
}
