package link

import (
	"testing"

	"github.com/ambi-cni/ambi/nlsock"
	"github.com/stretchr/testify/require"
)

// Who takes an interface away has it gone from both namespaces when the answer is there, and
// what is gone already is no error.
func TestTake(t *testing.T) {
	hub, member := newContainer(t), newContainer(t)
	at, in := hub.enter(t), member.enter(t)
	for range 20 {
		var b nlsock.Batch
		b.NewVeth(nlsock.Veth{Host: "veth0", Container: "eth0", HostMAC: []byte{2, 0, 0, 0, 0, 1}, ContainerMAC: []byte{2, 0, 0, 0, 0, 2}, MTU: 1500, Namespace: int(in.Netns.Fd()), OneQueue: true})
		_, err := b.Send(at.Route)
		require.NoError(t, err)
		end, err := at.Link("veth0")
		require.NoError(t, err)
		require.NotNil(t, end)
		require.Contains(t, member.run(t, "ip", "-d", "link", "show", "eth0"), "numtxqueues 1 ")
		worker, err := Enter(hub.netns, hub.owner)
		require.NoError(t, err)
		require.NoError(t, at.Take(end.Index, worker))
		for _, p := range []struct {
			*Place
			name string
		}{{at, "veth0"}, {in, "eth0"}} {
			l, err := p.Link(p.name)
			require.NoError(t, err)
			require.Nil(t, l, p.name)
		}
		worker, err = Enter(hub.netns, hub.owner)
		require.NoError(t, err)
		require.NoError(t, at.Take(end.Index, worker))
	}
}
