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
	maxName    = 254   // of a name (RFC 1035, section 2.3.4), without the last byte
)

// query is one question of a client.
type query struct {
	id       uint16
	flags    uint16 // the second word of the header
	question []byte // as it was asked; nil when it could not be read
	name     []byte // in lower case, without the dot at the end
	kind     dnsmessage.Type
	size     int // the longest answer that the client takes by UDP
	edns     bool
	lower    [maxName]byte
}

// end is where the question ends in the message.
func (q *query) end() int { return headerSize + len(q.question) }

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

// The flags of a header (RFC 1035, section 4.1.1; RFC 4035, section 3).
const (
	isResponse      = 1 << 15
	opcode          = 0xf << 11
	isAuthoritative = 1 << 10
	isTruncation    = 1 << 9
	wantsRecursion  = 1 << 8
	hasRecursion    = 1 << 7
	checkingOff     = 1 << 4
)

// parse reads a query. It is returned as far as it was read also with an error, which is
// a problem.
func (q *query) parse(msg []byte) error {
	*q = query{size: minUDP}
	if len(msg) < headerSize {
		return noQuery
	}
	q.id, q.flags = binary.BigEndian.Uint16(msg), binary.BigEndian.Uint16(msg[2:])
	counts := msg[4:headerSize] // of the four sections
	switch {
	case q.flags&isResponse != 0:
		return noQuery
	case q.flags&opcode != 0:
		return problem(dnsmessage.RCodeNotImplemented)
	case !bytes.Equal(counts[:6], []byte{0, 1, 0, 0, 0, 0}):
		return malformed
	}
	if !q.parseQuestion(msg) {
		return malformed
	}
	if counts[6]|counts[7] != 0 || len(msg) > q.end() {
		var p dnsmessage.Parser
		if _, err := p.Start(msg); err != nil || p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
			return malformed
		}
		if err := q.parseAdditional(&p); err != nil {
			return err
		}
	}
	class := dnsmessage.Class(binary.BigEndian.Uint16(q.question[len(q.question)-2:]))
	if class != dnsmessage.ClassINET || q.kind == dnsmessage.TypeAXFR || q.kind == typeIXFR {
		return problem(dnsmessage.RCodeRefused)
	}
	return nil
}

// parseQuestion reads name, type and class. A name with a dot within a label is no name of
// ours, and would be taken for another one.
func (q *query) parseQuestion(msg []byte) bool {
	end := questionEnd(msg)
	if end == 0 || end-headerSize > maxName+5 {
		return false
	}
	q.question = msg[headerSize:end]
	q.kind = dnsmessage.Type(binary.BigEndian.Uint16(q.question[len(q.question)-4:]))
	q.name = q.lower[:0]
	for i := 0; q.question[i] != 0; {
		label := q.question[i+1 : i+1+int(q.question[i])]
		if i > 0 {
			q.name = append(q.name, '.')
		}
		for _, c := range label {
			if c == '.' {
				return false
			}
			q.name = append(q.name, lower(c))
		}
		i += 1 + len(label)
	}
	return true
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
	opt := q.end()
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
// out, and the message says so. Names that an answer gives are written out, and whose they
// are is said by a pointer to the question.
func (r reply) pack(to []byte, q *query, limit int) []byte {
	begin := len(to)
	flags := isResponse | q.flags&(opcode|wantsRecursion|checkingOff) | hasRecursion | uint16(r.code)&0xf
	if !r.foreign {
		flags |= isAuthoritative
	}
	to = binary.BigEndian.AppendUint16(to, q.id)
	to = binary.BigEndian.AppendUint16(to, flags)
	to = append(to, make([]byte, headerSize-4)...)
	to = append(to, q.question...)
	room := begin + limit
	if q.edns {
		room -= optSize
	}
	answers := 0
	for i := range len(r.addresses) + len(r.names) {
		before := len(to)
		if i < len(r.addresses) {
			to = appendAddress(to, r.addresses[i])
		} else {
			to = appendName(to, r.names[i-len(r.addresses)])
		}
		if len(to) > room {
			to = to[:before]
			to[begin+2] |= isTruncation >> 8
			break
		}
		answers++
	}
	if q.edns {
		to = append(to, 0, 0, byte(dnsmessage.TypeOPT), maxUDP>>8, maxUDP&0xff, byte(r.code>>4), 0, 0, 0, 0, 0)
		to[begin+11] = 1
	}
	if q.question != nil {
		to[begin+5] = 1
	}
	binary.BigEndian.PutUint16(to[begin+6:], uint16(answers))
	return to
}

// optSize is how long the record of EDNS is (RFC 6891, section 6.1.2).
const optSize = 11

// appendHead is a record's beginning: about the question's name, of a TTL of 0.
func appendHead(to []byte, kind dnsmessage.Type, length int) []byte {
	return append(to, 0xc0, headerSize, 0, byte(kind), 0, byte(dnsmessage.ClassINET), 0, 0, 0, 0, byte(length>>8), byte(length))
}

func appendAddress(to []byte, a netip.Addr) []byte {
	if a.Is4() {
		four := a.As4()
		return append(appendHead(to, dnsmessage.TypeA, len(four)), four[:]...)
	}
	six := a.As16()
	return append(appendHead(to, dnsmessage.TypeAAAA, len(six)), six[:]...)
}

func appendName(to []byte, name string) []byte {
	to = appendHead(to, dnsmessage.TypePTR, len(name)+2)
	for label := range strings.SplitSeq(name, ".") {
		to = append(append(to, byte(len(label))), label...)
	}
	return append(to, 0)
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
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return len(a) == len(b)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
