package names

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// packed is a query for tests.
func packed(t require.TestingT, name string, kind dnsmessage.Type, size uint16) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	require.NoError(t, b.StartQuestions())
	require.NoError(t, b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}))
	if size > 0 {
		require.NoError(t, b.StartAdditionals())
		var h dnsmessage.ResourceHeader
		require.NoError(t, h.SetEDNS0(int(size), 0, false))
		require.NoError(t, b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	msg, err := b.Finish()
	require.NoError(t, err)
	return msg
}

// FuzzQuery: whatever a client sends, the answer is a message about it, no longer than
// the client takes, or there is none.
func FuzzQuery(f *testing.F) {
	f.Add(packed(f, "app.", dnsmessage.TypeA, 0), false)
	f.Add(packed(f, "APP.web.", dnsmessage.TypeAAAA, 4096), true)
	f.Add(packed(f, "3.0.1.10.in-addr.arpa.", dnsmessage.TypePTR, 1232), false)
	f.Add(packed(f, "example.org.", dnsmessage.TypeMX, 65535), true)
	f.Add(append(packed(f, "x.", dnsmessage.TypeA, 0), 0xc0, 0x0c), false)
	d := world()
	asker := d.askers[netip.MustParseAddr("10.1.0.2")]["web"]
	f.Fuzz(func(t *testing.T, msg []byte, stream bool) {
		limit := maxMessage
		var q query
		err := q.parse(msg)
		if !stream {
			limit = q.size
		}
		before := slices.Clone(msg)
		r, own := asker.answer(q.name, q.kind)
		if err != nil {
			r, own = reply{code: dnsmessage.RCodeFormatError, foreign: true}, true
		}
		if !own {
			clampSize(before, &q)
			require.NoError(t, q.parse(before), "what is passed on")
			require.True(t, answers(failure(msg), q.id, msg[headerSize:q.end()]))
			return
		}
		out := r.pack(nil, &q, limit)
		require.LessOrEqual(t, len(out), limit)
		var p dnsmessage.Parser
		h, err := p.Start(out)
		require.NoError(t, err)
		require.True(t, h.Response)
		require.NoError(t, p.SkipAllQuestions())
		require.NoError(t, p.SkipAllAnswers())
		require.NoError(t, p.SkipAllAuthorities())
		require.NoError(t, p.SkipAllAdditionals())
	})
}

// FuzzAnswer: of what comes from another server only an answer to the very question is
// one, and what is passed on to a client fits.
func FuzzAnswer(f *testing.F) {
	question := packed(f, "example.org.", dnsmessage.TypeA, 1232)
	lie := packed(f, "example.com.", dnsmessage.TypeA, 0)
	for _, msg := range [][]byte{question, lie, lie[:20], append(slices.Clone(question), make([]byte, 1500)...)} {
		msg = slices.Clone(msg)
		msg[2] |= 1 << 7
		f.Add(msg)
	}
	var q query
	require.NoError(f, q.parse(question))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if !answers(msg, 4711, q.question) {
			return
		}
		require.Equal(t, uint16(4711), binary.BigEndian.Uint16(msg))
		_ = isTruncated(msg)
		out := truncated(slices.Clone(msg), minUDP)
		require.LessOrEqual(t, len(out), minUDP)
		if len(msg) > minUDP {
			require.True(t, isTruncated(out))
		}
	})
}
