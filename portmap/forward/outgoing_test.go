package forward

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDatagramsThatGoAsOneMessage(t *testing.T) {
	for _, c := range []struct {
		lengths []int
		want    int
	}{
		{[]int{100}, 1},
		{[]int{0}, 1},
		{[]int{0, 0}, 1}, // no length to cut by
		{[]int{100, 100, 100}, 3},
		{[]int{100, 100, 30, 100}, 3}, // a shorter one is the last
		{[]int{100, 100, 101}, 2},
		{[]int{100, 0, 100}, 1}, // nothing would be left of it
		{[]int{30000, 30000, 30000}, 2},
		{[]int{65507, 1}, 1},
	} {
		d := newDatagrams()
		for i, length := range c.lengths {
			d.in[i].length = uint32(length)
		}
		require.Equal(t, c.want, d.alike(0, len(c.lengths)), "%v", c.lengths)
	}
}
