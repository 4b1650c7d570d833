package link

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// message is one of rtnetlink(7) as the kernel lists what it has, and takes it to make
// the same: a fixed header and attributes. What is carried is carried in this form, so
// that nothing is lost which this package does not know.
type message struct {
	What string `json:"what"` // for people
	Kind uint16 `json:"kind"` // RTM_NEW…
	Data []byte `json:"data"`
}

// UnmarshalJSON takes no message but one that can be read: what is in a record goes by itself.
func (m *message) UnmarshalJSON(text []byte) error {
	type plain message // without this method
	if err := json.Unmarshal(text, (*plain)(m)); err != nil {
		return err
	}
	if headers[m.Kind] == 0 {
		return fmt.Errorf("a message of rtnetlink(7) of an unknown kind: %d", m.Kind)
	}
	_, err := m.attributes()
	return err
}

// headers are the sizes of the fixed headers.
var headers = map[uint16]int{
	unix.RTM_NEWLINK:    unix.SizeofIfInfomsg,
	unix.RTM_NEWADDR:    unix.SizeofIfAddrmsg,
	unix.RTM_NEWROUTE:   unix.SizeofRtMsg,
	unix.RTM_NEWRULE:    unix.SizeofRtMsg, // struct fib_rule_hdr
	unix.RTM_NEWNEIGH:   unix.SizeofNdMsg,
	unix.RTM_NEWQDISC:   sizeofTcMsg,
	unix.RTM_NEWTCLASS:  sizeofTcMsg,
	unix.RTM_NEWTFILTER: sizeofTcMsg,
}

const sizeofTcMsg = 20

// attribute is one of a message. A nil value is none.
type attribute struct {
	kind  uint16 // with its flags: NLA_F_NESTED
	value []byte
}

func (a attribute) is(kind uint16) bool {
	return a.kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind
}

var errCutOff = errors.New("the kernel's answer is cut off")

func (m *message) attributes() ([]attribute, error) {
	size := headers[m.Kind]
	if len(m.Data) < size {
		return nil, errCutOff
	}
	return parseAttributes(m.Data[size:])
}

func parseAttributes(b []byte) (list []attribute, err error) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil, errCutOff
		}
		list = append(list, attribute{binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofNlAttr:size]})
		b = b[min(len(b), align(size)):]
	}
	return list, nil
}

func align(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

func appendAttribute(b []byte, a attribute) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(a.value)))
	b = binary.NativeEndian.AppendUint16(b, a.kind)
	b = append(b, a.value...)
	return append(b, make([]byte, align(len(a.value))-len(a.value))...)
}

// change has each attribute be as f makes it; nil leaves it out. The message's bytes
// are new ones then, its header may be written.
func (m *message) change(f func(attribute) []byte) {
	list, _ := m.attributes()
	b := bytes.Clone(m.Data[:headers[m.Kind]])
	for _, a := range list {
		if a.value = f(a); a.value != nil {
			b = appendAttribute(b, a)
		}
	}
	m.Data = b
}

// set adds an attribute, or has it another value.
func (m *message) set(kind uint16, value []byte) {
	m.change(func(a attribute) []byte {
		if a.is(kind) {
			return nil
		}
		return a.value
	})
	m.Data = appendAttribute(m.Data, attribute{kind, value})
}

// get is the value of an attribute; nil when there is none of that type.
func (m *message) get(kind uint16) []byte {
	for b := m.Data[headers[m.Kind]:]; len(b) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if a := (attribute{binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofNlAttr:size]}); a.is(kind) {
			return a.value
		}
		b = b[min(len(b), align(size)):]
	}
	return nil
}

func nested(b []byte, kind uint16) []byte {
	list, _ := parseAttributes(b)
	for _, a := range list {
		if a.is(kind) {
			return a.value
		}
	}
	return nil
}

func (m *message) number(kind uint16) uint32 { return number(m.get(kind)) }

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func put(b []byte, n uint32) { binary.NativeEndian.PutUint32(b, n) }

func bytesOf(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func text(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}

// send has the kernel do something with what the message is about.
func (m *message) send(p *Place, about string, kind, flags uint16) error {
	_, err := p.Route.Do([]nlsock.Request{{About: about + " " + m.What, Kind: kind, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags, Data: m.Data}})
	return err
}

// most is how many entries of a container's list are looked at: its root may have filled
// it.
const most = 1 << 15

var errTooMany = fmt.Errorf("the list has more than %d entries, no more of them were looked at", most)

// question asks for a list. It is comparable.
type question struct {
	about string
	kind  uint16 // of the answers, RTM_NEW…
	body  string // header and attributes
}

func ask(about string, kind uint16, header []byte, filter ...attribute) question {
	for _, a := range filter {
		header = appendAttribute(header, a)
	}
	return question{about, kind, string(header)}
}

// each calls f for the entries of a list, and says whether it was whole.
func (p *Place) each(q question, f func(*message)) (whole bool, err error) {
	n := 0
	var stop error
	whole, err = p.Route.Each(q.about, q.kind+2, []byte(q.body), nil, func(entry []byte) bool { // RTM_GET…
		m := message{Kind: q.kind, Data: entry}
		if len(entry) < headers[q.kind] {
			stop = errCutOff
		} else {
			f(&m)
		}
		if n++; n > most {
			stop = errTooMany
		}
		return stop == nil
	})
	if stop != nil {
		return false, errors.Join(fmt.Errorf("%s: %w", q.about, stop), p.reopen())
	}
	if err == nil {
		return whole, nil
	}
	// A kernel without the address family, or a namespace that has never had any, or not
	// that table or interface.
	err = ignoring(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ENOENT, unix.ENODEV)
	return err == nil, err
}

// list is a whole list.
func (p *Place) list(q question) (list []*message, err error) {
	const tries = 100
	for range tries {
		list = nil
		whole, err := p.each(q, func(m *message) { list = append(list, m) })
		if whole || err != nil {
			return list, err
		}
	}
	return nil, fmt.Errorf("%s: the list changed each of %d times it was read", q.about, tries)
}
