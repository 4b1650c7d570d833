package nat

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/ambi-cni/ambi/conf"
)

// longestOwner is how much of a name fits beside the kernel's mark: 256 bytes of
// user data of an nftables element, of an iptables comment 255, less their
// headers.
const longestOwner = 250

// tag is the short mark of an owner on each of its elements: 75 bits of a hash,
// 15 characters, which is what the nft type ifname and the end of an iptables
// chain's name hold.
func tag(k conf.Key) string {
	sum := sha256.Sum256([]byte(k.String()))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:15]
}

// validOwner refuses a name that could not be read back from the kernel.
func validOwner(k conf.Key) error {
	if len(k.String()) > longestOwner {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "publishing ports of %s: network name, container ID and interface name together are longer than %d bytes", k, longestOwner), "shorten the network's name")
	}
	return nil
}

// parseOwner is the inverse of conf.Key.String. None of the three parts may hold
// a slash (specification, section 2, and link names).
func parseOwner(s string) (conf.Key, bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return conf.Key{}, false
	}
	return conf.Key{Network: parts[0], ContainerID: parts[1], IfName: parts[2]}, true
}
