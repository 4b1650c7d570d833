package netns

import (
	"os"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// transaction is changes of the firewall that are done all or not at all. The library makes
// its messages. It would send them as well, and then wait for an answer to each of a hundred by
// way of Go's poller, which takes longer than all else that a hub starts with.
type transaction struct {
	*nftables.Conn
	messages []netlink.Message
}

func newTransaction() (*transaction, error) {
	t := &transaction{}
	var err error
	t.Conn, err = nftables.New(nftables.WithTestDial(func(all []netlink.Message) ([]netlink.Message, error) {
		t.messages = append(t.messages, all...)
		return nil, nil
	}))
	return t, err
}

// commit has the kernel do it, in a network namespace. Who calls it need not be in that one.
func (t *transaction) commit(inside *os.File) error {
	if err := t.Flush(); err != nil {
		return err
	}
	requests := make([]nlsock.Request, len(t.messages))
	for i, m := range t.messages {
		requests[i] = nlsock.Request{About: "nftables", Kind: uint16(m.Header.Type), Flags: uint16(m.Header.Flags), Data: m.Data}
	}
	s, err := nlsock.Open(unix.NETLINK_NETFILTER, inside)
	if err != nil {
		return err
	}
	defer s.Close()
	nlsock.Together(requests[:len(requests)-1]) // the last message is the end of the transaction
	_, err = s.Do(requests)
	return err
}
