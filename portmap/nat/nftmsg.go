package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// nftMessage is one nf_tables request about our table.
func nftMessage(op, flags uint16, a attrs) message {
	return message{unix.NFNL_SUBSYS_NFTABLES<<8 | op, flags, append(genericHeader(unix.NFPROTO_INET, 0), a...)}
}

// genericHeader is struct nfgenmsg: family, version 0, resource.
func genericHeader(f uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{f, unix.NFNETLINK_V0}, resource)
}

const headerSize = 4 // of struct nfgenmsg

// element is one element of a set or map. Comment is where nft keeps it, so that
// "nft list" shows it.
type element struct {
	key, data []byte
	comment   string
}

func (e element) attrs() attrs {
	a := attrs(nil).nest(unix.NFTA_SET_ELEM_KEY, attrs(nil).bytes(unix.NFTA_DATA_VALUE, e.key))
	if e.data != nil {
		a = a.nest(unix.NFTA_SET_ELEM_DATA, attrs(nil).bytes(unix.NFTA_DATA_VALUE, e.data))
	}
	if e.comment != "" {
		a = a.bytes(unix.NFTA_SET_ELEM_USERDATA, commentData(e.comment))
	}
	return a
}

// commentData is the comment as nft writes it: type 0, length, text with zero.
func commentData(s string) []byte {
	return append(append([]byte{0, byte(len(s) + 1)}, s...), 0)
}

func parseComment(b []byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == 0 {
			return strings.TrimRight(string(b[2:2+int(b[1])]), "\x00")
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

// elementMessages splits a list of elements into messages, because an attribute
// is at most 64 KiB long.
func elementMessages(op, flags uint16, set string, es []element) []message {
	const most = 48 << 10
	var msgs []message
	var list attrs
	flush := func() {
		if len(list) > 0 {
			msgs = append(msgs, nftMessage(op, flags, setAttrs(set).nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)))
			list = nil
		}
	}
	for _, e := range es {
		list = list.nest(unix.NFTA_LIST_ELEM, e.attrs())
		if len(list) > most {
			flush()
		}
	}
	flush()
	return msgs
}

func setAttrs(set string) attrs {
	return attrs(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName).text(unix.NFTA_SET_ELEM_LIST_SET, set)
}

// insert makes elements that must not be there yet: the kernel refuses the batch
// with EEXIST otherwise.
func insert(set string, es ...element) []message {
	return elementMessages(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, set, es)
}

// insertShared makes elements that may be there already, with the same data.
func insertShared(set string, es ...element) []message {
	return elementMessages(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, set, es)
}

// remove deletes elements by key; the kernel refuses the batch with ENOENT when
// one is not there.
func remove(set string, es ...element) []message {
	keys := make([]element, len(es))
	for i, e := range es {
		keys[i] = element{key: e.key}
	}
	return elementMessages(unix.NFT_MSG_DELSETELEM, 0, set, keys)
}

// parseElements reads the elements of one answer. They are copies, since data is
// part of a buffer that the next answer goes into.
func parseElements(data []byte, each func(element)) {
	if len(data) < headerSize {
		return
	}
	eachAttr(findAttr(data[headerSize:], unix.NFTA_SET_ELEM_LIST_ELEMENTS), func(_ uint16, item []byte) {
		each(element{
			key:     bytes.Clone(findAttr(item, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE)),
			data:    bytes.Clone(findAttr(item, unix.NFTA_SET_ELEM_DATA, unix.NFTA_DATA_VALUE)),
			comment: parseComment(findAttr(item, unix.NFTA_SET_ELEM_USERDATA)),
		})
	})
}

// commit sends a transaction: all of it or nothing. With a generation other than
// 0 the kernel refuses it with ERESTART when the ruleset has changed since. Each
// commit has a socket of its own, since a refused batch leaves answers unread.
func commit(generation uint32, msgs []message) error {
	if len(msgs) == 0 {
		return nil
	}
	s, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.close()
	begin := attrs(genericHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	end := message{unix.NFNL_MSG_BATCH_END, 0, begin}
	if generation != 0 {
		begin = begin.number(unix.NFNL_BATCH_GENID, generation)
	}
	batch := append([]message{{unix.NFNL_MSG_BATCH_BEGIN, 0, begin}}, msgs...)
	batch[len(batch)-1].flags |= unix.NLM_F_ACK
	first, err := s.send(append(batch, end)...)
	if err != nil {
		return err
	}
	return s.answers(first+uint32(len(msgs)), func(uint32, []byte) {})
}

// reader asks nf_tables questions.
type reader struct{ *socket }

func newReader() (reader, error) {
	s, err := dial(unix.NETLINK_NETFILTER)
	return reader{s}, err
}

// generation is the number of the ruleset, which every change by anyone raises.
func (r reader) generation() (uint32, error) {
	m := nftMessage(unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, nil)
	seq, err := r.send(m)
	if err != nil {
		return 0, err
	}
	var generation uint32
	err = r.answers(seq, func(_ uint32, data []byte) {
		if b := findAttr(data[min(headerSize, len(data)):], unix.NFTA_GEN_ID); len(b) == 4 {
			generation = binary.BigEndian.Uint32(b)
		}
	})
	return generation, err
}

// hasTable says whether our table is there.
func (r reader) hasTable() (bool, error) {
	return r.has(unix.NFT_MSG_GETTABLE, attrs(nil).text(unix.NFTA_TABLE_NAME, tableName))
}

// has says whether what the attributes name is there.
func (r reader) has(op uint16, a attrs) (bool, error) {
	seq, err := r.send(nftMessage(op, unix.NLM_F_ACK, a))
	if err != nil {
		return false, err
	}
	err = r.answers(seq, func(uint32, []byte) {})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// get looks up elements by key; the result has those that are there, by key.
func (r reader) get(set string, keys [][]byte) (map[string]element, error) {
	// Every answer takes a page or two of the socket's buffer, and the default one
	// is 208 KiB.
	const chunk = 32
	found := make(map[string]element, len(keys))
	for len(keys) > 0 {
		n := min(chunk, len(keys))
		if err := r.getSome(set, keys[:n], found); err != nil {
			return nil, err
		}
		keys = keys[n:]
	}
	return found, nil
}

func (r reader) getSome(set string, keys [][]byte, found map[string]element) error {
	msgs := make([]message, len(keys))
	for i, key := range keys {
		list := attrs(nil).nest(unix.NFTA_LIST_ELEM, element{key: key}.attrs())
		msgs[i] = nftMessage(unix.NFT_MSG_GETSETELEM, unix.NLM_F_ACK, setAttrs(set).nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
	}
	seq, err := r.send(msgs...)
	if err != nil {
		return err
	}
	// A missing element is answered by ENOENT, and the next answer follows.
	for last := seq + uint32(len(msgs)) - 1; seq <= last; seq++ {
		err := r.answers(seq, func(_ uint32, data []byte) {
			parseElements(data, func(e element) { found[string(e.key)] = e })
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// list hands all elements of a set to each, until it returns false; a set that is
// not there has none.
func (r reader) list(set string, each func(element) bool) error {
	err := r.dump(nftMessage(unix.NFT_MSG_GETSETELEM, 0, setAttrs(set)), func(data []byte) bool {
		more := true
		parseElements(data, func(e element) { more = more && each(e) })
		return more
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
