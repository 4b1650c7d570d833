package bridge

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBusTextTooLong: a length that is more than an int of 32 bits can be added to.
func TestBusTextTooLong(t *testing.T) {
	text, end := busTextAt(binary.LittleEndian, []byte{0xff, 0xff, 0xff, 0x7f, 'a', 0}, 0)
	require.Empty(t, text)
	require.Equal(t, 6, end)
}
