package delegate

import (
	"github.com/containernetworking/cni/pkg/types"
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

// Before110 is a result without the keys that came with version 1.1.0, for a
// cniVersion before that: the library has one type for 1.0.0 and 1.1.0 and leaves
// nothing out. The result itself stays as it is.
func Before110(result *types100.Result, cniVersion string) *types100.Result {
	if atLeast(cniVersion, "1.1.0") {
		return result
	}
	older := *result
	older.Interfaces, older.Routes = nil, nil
	for _, i := range result.Interfaces {
		older.Interfaces = append(older.Interfaces, &types100.Interface{Name: i.Name, Mac: i.Mac, Sandbox: i.Sandbox})
	}
	for _, r := range result.Routes {
		older.Routes = append(older.Routes, &types.Route{Dst: r.Dst, GW: r.GW})
	}
	return &older
}
