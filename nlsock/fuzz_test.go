package nlsock

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// answer is a message as the kernel would send it.
func answer(kind, flags uint16, seq uint32, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return append(append(b, 0, 0, 0, 0), data...)
}

// FuzzAnswers: whatever is received is cut into answers that lie in it whole, or refused, and
// what each says of an error is read.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{})
	f.Add(answer(unix.NLMSG_DONE, 0, 1, 0, 0, 0, 0))
	f.Add(answer(unix.NLMSG_ERROR, 0, 1, 0xff, 0xff, 0xff, 0xff))
	f.Add(append(answer(unix.RTM_NEWLINK, 2, 1, 1, 2, 3), 0, 1, 2, 3))
	words := append(make([]byte, 4+unix.SizeofNlMsghdr), 8, 0, 1, 0, 'n', 'o', 0, 0)
	words[0], words[1], words[2], words[3] = 0xea, 0xff, 0xff, 0xff
	f.Add(answer(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 7, words...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, received []byte) {
		answers, err := parse(received)
		if err != nil {
			require.Nil(t, answers)
			return
		}
		size := 0
		for _, a := range answers {
			size += unix.SizeofNlMsghdr + len(a.Data)
			if err := a.failed(); err != nil {
				require.NotEmpty(t, err.Error())
			}
		}
		require.LessOrEqual(t, size, len(received))
	})
}
