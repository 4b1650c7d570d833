package names

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Sizes, in bytes.
const (
	headerSize = 12
	minUDP     = 512   // what every client takes by UDP (RFC 1035, section 4.2.1)
	maxUDP     = 1232  // of a message by UDP: no fragments (DNS flag day 2020)
	maxStream  = 4096  // of a query by TCP
	maxMessage = 65535 // of an answer by TCP
)

// query is one question of a client.
type query struct {
	header dnsmessage.Header
	dnsmessage.Question
	name string // in lower case, without the dot at the end
	size int    // the longest answer that the client takes by UDP
	edns bool
	end  int // of the question in the message
}

// problem is why a query cannot be served.
type problem dnsmessage.RCode

func (p problem) Error() string { return dnsmessage.RCode(p).String() }

const (
	malformed = problem(dnsmessage.RCodeFormatError)
	// noQuery gets no answer: it is no message, or itself an answer.
	noQuery = problem(dnsmessage.RCodeSuccess)
	// badVersion is a code of EDNS, whose lower four bits are in the header (RFC 6891, 6.1.3).
	badVersion = problem(16)
)

// Types that dnsmessage has no names for.
const (
	typeDS     = dnsmessage.Type(43)
	typeDNSKEY = dnsmessage.Type(48)
	typeIXFR   = dnsmessage.Type(251)
)

// parse reads a query. It is returned as far as it was read also with an error, which is
// a problem.
func parse(msg []byte) (q query, err error) {
	q.size = minUDP
	var p dnsmessage.Parser
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return q, noQuery
	}
	counts := msg[4:headerSize] // of the four sections
	switch {
	case q.header.OpCode != 0:
		return q, problem(dnsmessage.RCodeNotImplemented)
	case !bytes.Equal(counts[:6], []byte{0, 1, 0, 0, 0, 0}):
		return q, malformed
	}
	if q.Question, err = p.Question(); err != nil {
		return q, malformed
	}
	if q.end = questionEnd(msg); q.end == 0 {
		return q, malformed
	}
	q.name = strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	_, _ = p.Question() // ends the section
	_, _ = p.AnswerHeader()
	_, _ = p.AuthorityHeader()
	if err := q.parseAdditional(&p); err != nil {
		return q, err
	}
	if q.Class != dnsmessage.ClassINET || q.Type == dnsmessage.TypeAXFR || q.Type == typeIXFR {
		return q, problem(dnsmessage.RCodeRefused)
	}
	return q, nil
}

// questionEnd is where the first question of a message ends; 0 where its name is not
// written out, as there is nothing yet that it could point to.
func questionEnd(msg []byte) int {
	const longestLabel, typeAndClass = 63, 4
	for i := headerSize; i < len(msg) && msg[i] <= longestLabel; i += 1 + int(msg[i]) {
		if end := i + 1 + typeAndClass; msg[i] == 0 && end <= len(msg) {
			return end
		}
	}
	return 0
}

func (q *query) parseAdditional(p *dnsmessage.Parser) error {
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err != nil || h.Type == dnsmessage.TypeOPT && q.edns {
			return malformed
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.size = true, min(max(int(h.Class), minUDP), maxUDP)
			if version := h.TTL >> 16 & 0xff; version != 0 {
				return badVersion
			}
		}
		if p.SkipAdditional() != nil {
			return malformed
		}
	}
}

// clampSize has a message that is passed on ask for no longer answers than we take by UDP.
func clampSize(msg []byte, q *query) {
	const root, classAt = 0, 3
	opt := q.end
	if !q.edns || len(msg) < opt+classAt+2 || msg[opt] != root || dnsmessage.Type(binary.BigEndian.Uint16(msg[opt+1:])) != dnsmessage.TypeOPT {
		return
	}
	binary.BigEndian.PutUint16(msg[opt+classAt:], uint16(q.size))
}

// reply is an answer of ours.
type reply struct {
	code      dnsmessage.RCode
	foreign   bool // not of the network's own names
	addresses []netip.Addr
	names     []string // of an address
}

// pack appends the answer to a query, of at most limit bytes: what does not fit is left
// out, and the message says so.
func (r reply) pack(to []byte, q *query, limit int) []byte {
	for n := len(r.addresses) + len(r.names); ; {
		msg, err := r.packFirst(to, q, n)
		over := len(msg) - len(to) - limit
		if err == nil && over <= 0 {
			return msg
		}
		if n == 0 {
			return to // cannot be: limit is at least that of a question
		}
		const record = 12 // the shortest
		n = min(n-1, max(0, n-over/record/3))
	}
}

func (r reply) packFirst(to []byte, q *query, n int) ([]byte, error) {
	b := dnsmessage.NewBuilder(to, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RCode: r.code & 0xf,
		Authoritative: !r.foreign, Truncated: n < len(r.addresses)+len(r.names),
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, CheckingDisabled: q.header.CheckingDisabled,
	})
	b.EnableCompression()
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	if q.Name.Length > 0 {
		add(b.StartQuestions())
		add(b.Question(q.Question))
	}
	add(b.StartAnswers())
	h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	for _, a := range r.addresses[:min(n, len(r.addresses))] {
		if a.Is4() {
			add(b.AResource(h, dnsmessage.AResource{A: a.As4()}))
		} else {
			add(b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()}))
		}
	}
	for _, name := range r.names[:max(0, min(n-len(r.addresses), len(r.names)))] {
		target, err := dnsmessage.NewName(name + ".")
		add(err)
		add(b.PTRResource(h, dnsmessage.PTRResource{PTR: target}))
	}
	if q.edns {
		var opt dnsmessage.ResourceHeader
		add(opt.SetEDNS0(maxUDP, r.code, false))
		add(b.StartAdditionals())
		add(b.OPTResource(opt, dnsmessage.OPTResource{}))
	}
	msg, err := b.Finish()
	return msg, errors.Join(append(errs, err)...)
}

// truncated is a message cut to its question, saying so; as it is where it fits.
func truncated(msg []byte, limit int) []byte {
	if len(msg) <= limit {
		return msg
	}
	const truncation = 2
	msg[2] |= truncation
	msg = msg[:max(questionEnd(msg), headerSize)]
	clear(msg[6:headerSize]) // the counts of the other sections
	return msg
}

// answers says whether a message is the answer to a question: of its ID, and about nothing
// else. A server that reads no questions may say so without one.
func answers(msg []byte, id uint16, question []byte) bool {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg) != id || msg[2]>>3 != 1<<4 { // an answer, opcode 0
		return false
	}
	end := headerSize + len(question)
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		return codeOf(msg) != dnsmessage.RCodeSuccess && codeOf(msg) != dnsmessage.RCodeNameError
	case 1:
		return len(msg) >= end && equalFold(msg[headerSize:end], question)
	}
	return false
}

func codeOf(msg []byte) dnsmessage.RCode { return dnsmessage.RCode(msg[3] & 0xf) }

func isTruncated(msg []byte) bool { return msg[2]&2 != 0 }

// equalFold is about ASCII letters alone, as names are compared (RFC 4343).
func equalFold(a, b []byte) bool {
	lower := func(c byte) byte {
		if 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return len(a) == len(b)
}
