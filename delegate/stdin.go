package delegate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambi-cni/ambi/conf"
)

// member is one key of a JSON object with its value's text.
type member struct {
	key string
	raw json.RawMessage
}

// reserved are the keys that the runtime sets and an administrator may not
// (specification section 1, "Plugin configuration objects", and section 3).
var reserved = []string{"cniVersion", "name", "prevResult", "runtimeConfig", gcKey, oldGCKey}

// The name of GC's list in the specification, and in its tag spec-v1.1.0.
// libcni sends both.
const (
	gcKey    = "cni.dev/valid-attachments"
	oldGCKey = "cni.dev/attachments"
)

// stdin is what a delegate reads: its configuration as the administrator wrote
// it, without the reserved keys, and then ours.
func (c *Chain) stdin(d conf.Delegate, r request, cniVersion string) ([]byte, error) {
	ours := []member{{"name", quote(c.Attachment.NetConf.Name)}, {"cniVersion", quote(cniVersion)}}
	if r.valid != nil {
		raw, err := json.Marshal(r.valid)
		if err != nil {
			return nil, fmt.Errorf("valid attachments: %w", err)
		}
		ours = append(ours, member{gcKey, raw}, member{oldGCKey, raw})
	}
	if r.attached() {
		per, err := c.perAttachment(d, r, cniVersion)
		if err != nil {
			return nil, err
		}
		ours = append(ours, per...)
	}
	return splice(d.Raw, reserved, ours)
}

// perAttachment is what depends on the container: prevResult, runtimeConfig and
// args.
func (c *Chain) perAttachment(d conf.Delegate, r request, cniVersion string) ([]member, error) {
	var ours []member
	// DEL has had a prevResult since 0.4.0.
	if r.prev != nil && (r.verb != "DEL" || atLeast(cniVersion, "0.4.0")) {
		raw, err := marshalResult(r.prev, cniVersion)
		if err != nil {
			return nil, err
		}
		ours = append(ours, member{"prevResult", raw})
	}
	if share := c.Attachment.RawRuntimeConfig(d.Capabilities); len(share) > 0 {
		ours = append(ours, member{"runtimeConfig", object(share)})
	}
	// The runtime's per-container args come in ambi's own entry; a delegate with
	// args of its own was given them by the administrator.
	if args := value(c.Attachment.NetConf.Raw, "args"); args != nil && value(d.Raw, "args") == nil {
		ours = append(ours, member{"args", args})
	}
	return ours, nil
}

// marshalResult is the result in the form of a version of the specification.
func marshalResult(result *types100.Result, cniVersion string) (json.RawMessage, error) {
	own := *conf.Before110(result, cniVersion)
	if own.CNIVersion == "" {
		own.CNIVersion = types100.ImplementedSpecVersion
	}
	converted, err := own.GetAsVersion(cniVersion)
	if err != nil {
		return nil, fmt.Errorf("prevResult in version %s: %w", cniVersion, err)
	}
	raw, err := json.Marshal(converted)
	if err != nil {
		return nil, fmt.Errorf("prevResult in version %s: %w", cniVersion, err)
	}
	return raw, nil
}

// splice returns the JSON object raw without the keys in cut and with the
// members in add at its end. Everything else stays as it is, to the byte: blanks,
// order, numbers of any size, duplicate keys.
//
// The added members come last because readers that meet a key twice, or in
// another case (encoding/json accepts "CNIVersion"), take the last one.
func splice(raw []byte, cut []string, add []member) ([]byte, error) {
	parts, err := split(raw)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteByte('{')
	separator := ""
	for _, p := range parts {
		if slices.Contains(cut, p.key) {
			continue
		}
		out.WriteString(separator)
		out.Write(p.text)
		separator = ","
	}
	for _, m := range add {
		out.WriteString(separator)
		out.Write(quote(m.key))
		out.WriteByte(':')
		out.Write(m.raw)
		separator = ","
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// part is one member of an object with the text from the separator before it to
// the one after it, blanks included.
type part struct {
	key  string
	raw  json.RawMessage // the value
	text []byte
}

// split takes the text of a JSON object apart at its top level.
func split(raw []byte) ([]part, error) {
	if !json.Valid(raw) {
		return nil, fmt.Errorf("not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	var parts []part
	start := d.InputOffset()
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		p := part{key: key.(string)}
		if err := d.Decode(&p.raw); err != nil {
			return nil, err
		}
		// From the value to the separator there are only blanks, the text being
		// valid.
		end := d.InputOffset() + int64(bytes.IndexAny(raw[d.InputOffset():], ",}"))
		p.text = raw[start:end]
		parts = append(parts, p)
		start = end + 1
	}
	return parts, nil
}

// value is the text of a key's value in a JSON object, the last one where there
// are several; nil when it is absent, null, or raw is not an object.
func value(raw []byte, key string) json.RawMessage {
	parts, err := split(raw)
	if err != nil {
		return nil
	}
	for _, p := range slices.Backward(parts) {
		if p.key == key && string(p.raw) != "null" {
			return p.raw
		}
	}
	return nil
}

// object writes values into an object as they are; json.Marshal would rewrite
// them.
func object(values map[string]json.RawMessage) json.RawMessage {
	members := make([]member, 0, len(values))
	for key, raw := range values {
		members = append(members, member{key, raw})
	}
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare([]byte(a.key), []byte(b.key)) })
	out, err := splice([]byte("{}"), nil, members)
	if err != nil {
		panic(err) // "{}" is an object
	}
	return out
}

// quote is s as a JSON text, without the escapes that json.Marshal makes for
// HTML.
func quote(s string) json.RawMessage {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string is always encodable
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// atLeast compares versions of the specification.
func atLeast(v, least string) bool {
	ok, err := version.GreaterThanOrEqualTo(v, least)
	return err == nil && ok
}
