package conf

import (
	"bytes"
	"net/netip"
	"slices"
)

// MaxNameServers is how many name servers of a file are taken. The C library takes 3.
const MaxNameServers = 5

// NameServers reads the name servers of a resolv.conf(5).
func NameServers(text []byte) (servers []netip.Addr) {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) < 2 || string(fields[0]) != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(string(fields[1]))
		if err == nil && a.Is4In6() {
			a = a.Unmap()
		}
		if a.IsUnspecified() && a.Is4() {
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // as the C library has it
		}
		if err == nil && !slices.Contains(servers, a) && len(servers) < MaxNameServers {
			servers = append(servers, a)
		}
	}
	return servers
}
