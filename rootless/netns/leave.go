package netns

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// masquerade has all that leaves a hub by the driver's interface come from that one's
// address, whatever plugins have set up: the driver knows no other. As nft shows it:
//
//	table inet ambi_hub {
//		chain postrouting { type nat hook postrouting priority srcnat; oifname "tap0" masquerade }
//	}
func (n *Namespace) masquerade() (err error) {
	n.Do(func() { err = masqueradeHere(n.plan.IfName) })
	if err != nil {
		return fmt.Errorf("masquerading in the hub: %w", err)
	}
	return nil
}

func masqueradeHere(ifName string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "ambi_hub", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	name := make([]byte, 16) // IFNAMSIZ
	copy(name, ifName)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Masq{},
	}})
	return c.Flush()
}
