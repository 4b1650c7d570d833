package suite

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPointsAreNumbered(t *testing.T) {
	require.Len(t, points, 108)
	for i, p := range points {
		require.Equal(t, i+1, p.Number)
		require.NotEmpty(t, p.Sentence)
		require.NotEmpty(t, p.Basis)
		require.Contains(t, letters, p.Letter)
		require.NotNil(t, p.Run)
	}
}

func TestChosen(t *testing.T) {
	for _, tt := range []struct {
		only []string
		want []int
	}{
		{[]string{"31"}, []int{31}},
		{[]string{"G101", "c31-c33", "31"}, []int{31, 32, 33, 101}},
		{[]string{"g", "4-5"}, []int{4, 5, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108}},
	} {
		got, err := chosen(tt.only)
		require.NoError(t, err)
		require.Equal(t, tt.want, got)
	}
	all, err := chosen(nil)
	require.NoError(t, err)
	require.Len(t, all, len(points))
	for _, bad := range []string{"109", "0", "H", "x-y", "40-31", "-"} {
		_, err := chosen([]string{bad})
		require.ErrorContains(t, err, bad)
	}
}
