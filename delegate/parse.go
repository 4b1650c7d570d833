package delegate

import (
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
)

// ParseResult reads a result, of cniVersion when it does not say which version it
// is, and converts it to the newest form. Errors have code 6.
func ParseResult(raw []byte, cniVersion string) (*types100.Result, error) {
	return decodeResult(raw, cniVersion)
}

// BridgeName is the link that the built-in default chain makes for a network.
func BridgeName(b conf.Bridge, network string) string {
	if b.Name != "" {
		return b.Name
	}
	return bridgeName(network)
}
