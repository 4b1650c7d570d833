package conf

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// fields says, key by key, how a JSON object is read. A func gets the key's full
// path ("rootless.mtu") for its error messages.
type fields map[string]func(path string, raw json.RawMessage) error

// decodeObject reads a JSON object strictly: exact key names, no unknown key, in
// the order of the names so that errors do not change from run to run. A null
// value counts as absent. What can be read is read, also when there is an error,
// which is about the first key that could not.
func decodeObject(path string, raw json.RawMessage, f fields) error {
	return decodeObjectTolerant(path, raw, f, noKey)
}

// decodeObjectTolerant is decodeObject with foreign keys that are passed over.
func decodeObjectTolerant(path string, raw json.RawMessage, f fields, foreign func(key string) bool) error {
	object, err := openObject(path, raw)
	if err != nil {
		return err
	}
	return object.decode(path, f, foreign)
}

// decodeFolded is decodeObjectTolerant for what a runtime writes by itself, with
// key names in any case: containerd's go-cni sends HostPort for hostPort, and
// every plugin that reads with encoding/json takes it.
func decodeFolded(path string, raw json.RawMessage, f fields, foreign func(key string) bool) error {
	object, err := openObject(path, raw)
	if err != nil {
		return err
	}
	return object.decodeFolded(path, f, foreign)
}

// members are the values of a JSON object by their keys.
type members map[string]json.RawMessage

// MarshalJSON is for error messages.
func (object members) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]json.RawMessage(object))
}

func (object members) decodeFolded(path string, f fields, foreign func(key string) bool) error {
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if f[key] != nil {
			continue
		}
		for ours := range f {
			if !strings.EqualFold(key, ours) {
				continue
			}
			if _, twice := object[ours]; twice {
				return Invalid(join(path, key), object[key], "it is there twice, also as "+ours)
			}
			object[ours] = object[key]
			delete(object, key)
		}
	}
	return object.decode(path, f, foreign)
}

func openObject(path string, raw json.RawMessage) (members, error) {
	var object members
	if err := json.Unmarshal(raw, &object); err != nil || object == nil {
		return nil, Invalid(path, raw, "it is a JSON object")
	}
	return object, nil
}

func (object members) decode(path string, f fields, foreign func(key string) bool) error {
	var first error
	for _, key := range slices.Sorted(maps.Keys(object)) {
		read, ours := f[key]
		switch {
		case ours && string(object[key]) != "null":
			first = cmp.Or(first, read(join(path, key), object[key]))
		case ours, foreign(key):
		default:
			first = cmp.Or(first, error(Mendf(Unsupported(join(path, key), object[key], "no such key"), "the keys of %s are %s", path, f.names())))
		}
	}
	return first
}

// names are the keys, for messages.
func (f fields) names() string { return strings.Join(slices.Sorted(maps.Keys(f)), ", ") }

// anyKey tolerates every foreign key.
func anyKey(string) bool { return true }

// noKey tolerates none.
func noKey(string) bool { return false }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// into reads any value that encoding/json can put into target, saying what was
// expected when it cannot. Then the target stays as it was: half a list of valid
// attachments would have GC take down the other half.
func into[T any](target *T, expected string) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error {
		var value T
		if err := json.Unmarshal(raw, &value); err != nil {
			return Invalid(path, raw, "it is "+expected)
		}
		*target = value
		return nil
	}
}

// boolean reads true or false into target.
func boolean(target *bool) func(string, json.RawMessage) error {
	return into(target, "true or false")
}

// oneOf reads a text that must be one of the allowed ones.
func oneOf[T ~string](target *T, allowed ...T) func(string, json.RawMessage) error {
	return func(path string, raw json.RawMessage) error {
		var s T
		if err := json.Unmarshal(raw, &s); err != nil || !slices.Contains(allowed, s) {
			names := make([]string, len(allowed))
			for i, a := range allowed {
				names[i] = string(a)
			}
			return Invalid(path, raw, "allowed are "+strings.Join(names, ", "))
		}
		*target = s
		return nil
	}
}
