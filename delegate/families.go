package delegate

import (
	"encoding/json"
	"net/netip"
)

// Families says which addresses the container is going to have, as far as the
// configuration tells: host-local's ranges and static's addresses do, other IPAM
// plugins do not. Both are false when nothing is known.
func (c *Chain) Families() (v4, v6 bool) {
	for _, d := range c.Delegates {
		var told struct {
			IPAM ipamAddresses `json:"ipam"`
		}
		if json.Unmarshal(d.Raw, &told) != nil {
			continue
		}
		share := c.Attachment.RawRuntimeConfig(d.Capabilities)
		_ = json.Unmarshal(share["ipRanges"], &told.IPAM.Given) // host-local adds them
		for _, text := range told.IPAM.all() {
			if p, err := netip.ParsePrefix(text); err == nil {
				v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
			}
		}
	}
	return v4, v6
}

// ipamAddresses are the keys of host-local and static that have addresses.
type ipamAddresses struct {
	Subnet    string          `json:"subnet"`
	Ranges    [][]ipamSubnet  `json:"ranges"`
	Addresses []staticAddress `json:"addresses"`
	Given     [][]ipamSubnet  `json:"-"`
}

type ipamSubnet struct {
	Subnet string `json:"subnet"`
}

type staticAddress struct {
	Address string `json:"address"`
}

func (a ipamAddresses) all() []string {
	texts := []string{a.Subnet}
	for _, set := range append(a.Ranges, a.Given...) {
		for _, r := range set {
			texts = append(texts, r.Subnet)
		}
	}
	for _, s := range a.Addresses {
		texts = append(texts, s.Address)
	}
	return texts
}
