package bridge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

// bus is a connection to a message bus: as much of D-Bus as it takes to call a method
// with texts (D-Bus specification 0.43). A library for all of it would be a tenth of
// the binary.
type bus struct {
	net.Conn
	in     *bufio.Reader
	serial uint32
}

var errNoService = errors.New("nobody has that name on the bus")

func dialBus(ctx context.Context, path string) (*bus, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	b := &bus{Conn: conn, in: bufio.NewReader(conn)}
	if err := b.introduce(); err != nil {
		conn.Close()
		return nil, err
	}
	return b, nil
}

// introduce says who we are: the bus asks the kernel for our uid and compares.
func (b *bus) introduce() error {
	uid := fmt.Sprintf("%x", strconv.Itoa(os.Geteuid()))
	if _, err := fmt.Fprintf(b, "\x00AUTH EXTERNAL %s\r\n", uid); err != nil {
		return err
	}
	line, err := b.in.ReadSlice('\n') // no longer than its buffer
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("OK ")) {
		return fmt.Errorf("the bus refuses uid %d: %s", os.Geteuid(), bytes.TrimSpace(line))
	}
	if _, err := fmt.Fprint(b, "BEGIN\r\n"); err != nil {
		return err
	}
	const name = "org.freedesktop.DBus"
	return b.call(name, "/org/freedesktop/DBus", name, "Hello")
}

// The types of messages, and of fields of their headers.
const (
	busCall, busReply, busError, busSignal = 1, 2, 3, 4

	fieldPath, fieldInterface, fieldMember, fieldErrorName = 1, 2, 3, 4
	fieldReplySerial, fieldDestination, fieldSignature     = 5, 6, 8

	busNoAutoStart = 2 // do not start who does not run
)

// call calls a method and waits for its reply, whose contents are not looked at.
func (b *bus) call(destination, path, iface, method string, args ...string) error {
	b.serial++
	if _, err := b.Write(busMessage(b.serial, destination, path, iface, method, args)); err != nil {
		return err
	}
	for {
		m, err := readBusMessage(b.in)
		if err != nil {
			return err
		}
		switch {
		case m.replyTo != b.serial:
		case m.kind == busReply:
			return nil
		case m.kind == busError && (strings.HasSuffix(m.errorName, ".ServiceUnknown") || strings.HasSuffix(m.errorName, ".NameHasNoOwner")):
			return errNoService
		case m.kind == busError:
			return fmt.Errorf("%s: %s", m.errorName, m.text)
		}
	}
}

// awaitSignal waits for one of the signals that were asked for with AddMatch. Any name but
// theirs is passed over, such as NameAcquired, which everybody gets.
func (b *bus) awaitSignal(members ...string) error {
	for {
		m, err := readBusMessage(b.in)
		if err != nil {
			return err
		}
		if m.kind == busSignal && slices.Contains(members, m.member) {
			return nil
		}
	}
}

func busMessage(serial uint32, destination, path, iface, method string, args []string) []byte {
	var fields, body []byte
	for _, a := range args {
		body = busText(body, a)
	}
	field := func(kind byte, signature, value string) {
		fields = append(busAlign(fields, 8), kind, byte(len(signature)))
		fields = append(append(fields, signature...), 0)
		if signature == "g" {
			fields = append(append(append(fields, byte(len(value))), value...), 0)
			return
		}
		fields = busText(fields, value)
	}
	field(fieldPath, "o", path)
	field(fieldInterface, "s", iface)
	field(fieldMember, "s", method)
	field(fieldDestination, "s", destination)
	if len(args) > 0 {
		field(fieldSignature, "g", strings.Repeat("s", len(args)))
	}
	m := []byte{'l', busCall, busNoAutoStart, 1}
	m = binary.LittleEndian.AppendUint32(m, uint32(len(body)))
	m = binary.LittleEndian.AppendUint32(m, serial)
	m = binary.LittleEndian.AppendUint32(m, uint32(len(fields)))
	return append(busAlign(append(m, fields...), 8), body...)
}

func busAlign(b []byte, to int) []byte {
	for len(b)%to != 0 {
		b = append(b, 0)
	}
	return b
}

func busText(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(busAlign(b, 4), uint32(len(s)))
	return append(append(b, s...), 0)
}

// busAnswer is what is read of a message.
type busAnswer struct {
	kind                    byte
	replyTo                 uint32
	member, errorName, text string
}

func readBusMessage(r io.Reader) (busAnswer, error) {
	const head, most = 16, 1 << 20
	b := make([]byte, head)
	if _, err := io.ReadFull(r, b); err != nil {
		return busAnswer{}, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := int(order.Uint32(b[4:])), int(order.Uint32(b[12:]))
	padded := (fields + 7) &^ 7
	if body < 0 || fields < 0 || body > most || fields > most {
		return busAnswer{}, errors.New("the bus sent a message that is too long")
	}
	rest := make([]byte, padded+body)
	if _, err := io.ReadFull(r, rest); err != nil {
		return busAnswer{}, err
	}
	a := busAnswer{kind: b[1]}
	a.readFields(order, rest[:fields])
	a.text, _ = busTextAt(order, rest[padded:], 0)
	return a, nil
}

// readFields reads the header's fields, which are aligned to 8 bytes: a kind, a
// signature of one letter, a value.
func (a *busAnswer) readFields(order binary.ByteOrder, b []byte) {
	const head = 4 // kind, length of the signature, its letter, 0
	for at := 0; at+head < len(b); at = (at + 7) &^ 7 {
		kind, letter := b[at], b[at+2]
		at += head
		switch letter {
		case 'u':
			if at+4 > len(b) {
				return
			}
			if kind == fieldReplySerial {
				a.replyTo = order.Uint32(b[at:])
			}
			at += 4
		case 'g':
			at += int(b[at]) + 2
		default:
			text, end := busTextAt(order, b, at)
			switch kind {
			case fieldMember:
				a.member = text
			case fieldErrorName:
				a.errorName = text
			}
			at = end
		}
	}
}

// busTextAt reads a text and says where it ends.
func busTextAt(order binary.ByteOrder, b []byte, at int) (string, int) {
	if at+4 > len(b) {
		return "", len(b)
	}
	n := int(order.Uint32(b[at:]))
	if n < 0 || n > len(b)-at-5 { // their sum may be more than an int of 32 bits
		return "", len(b)
	}
	return string(b[at+4 : at+4+n]), at + 4 + n + 1
}
