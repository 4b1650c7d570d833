package delegate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/ambi-cni/ambi/conf"
)

// ParseResult reads what a plugin printed when asked in version asked, and
// converts it to the newest form. A result without cniVersion is in the version
// that was asked in (cni#895). Anything but an object is an error of code 6:
// nothing, null, half of a result, text.
func ParseResult(out []byte, asked string) (*types100.Result, error) {
	head := struct {
		CNIVersion string   `json:"cniVersion"`
		Interfaces nonNulls `json:"interfaces"`
		IPs        nonNulls `json:"ips"`
		Routes     nonNulls `json:"routes"`
	}{}
	if err := json.Unmarshal(out, &head); err != nil || !isObject(out) {
		return nil, notAResult(out, err)
	}
	if head.CNIVersion == "" {
		head.CNIVersion = asked
		var err error
		if out, err = splice(out, []string{"cniVersion"}, []member{{"cniVersion", quote(asked)}}); err != nil {
			return nil, notAResult(out, err)
		}
	}
	result, err := create.Create(head.CNIVersion, out)
	if err != nil {
		return nil, notAResult(out, err)
	}
	newest, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, notAResult(out, err)
	}
	return newest, nil
}

// mostEntries is how many interfaces, addresses and routes each a delegate's result
// may have; real ones have a few. Each address is put on a stand-in at a late DEL, and
// may cost a plugin's run there.
const mostEntries = 1000

// bounded refuses, with code 6, a result that is too long to be undone in time.
func bounded(result *types100.Result) error {
	if n := max(len(result.Interfaces), len(result.IPs), len(result.Routes)); n > mostEntries {
		return conf.Mendf(conf.Errorf(types.ErrDecodingFailure, "its result has a list of %d entries, %d are allowed", n, mostEntries), "correct the plugin or what it is configured with")
	}
	return nil
}

// nonNulls is a list without null in it, which the library would follow when it
// converts the result.
type nonNulls struct{}

func (nonNulls) UnmarshalJSON(raw []byte) error {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return err
	}
	for _, item := range items {
		if string(item) == "null" {
			return errors.New("null in a list")
		}
	}
	return nil
}

func isObject(out []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(out, " \t\r\n"), []byte("{"))
}

func notAResult(out []byte, err error) *types.Error {
	why := ""
	if err != nil {
		why = fmt.Sprintf(" (%v)", err)
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return conf.Errorf(types.ErrDecodingFailure, "it ended well but printed no result")
	}
	return conf.Errorf(types.ErrDecodingFailure, "it ended well but printed no result%s: %q", why, tail(out))
}
