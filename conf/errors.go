package conf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Error codes of the CNI specification 1.1.0, section 5 "Error", that the
// library of v1.3.0 does not have, and ours from 100 on.
const (
	ErrPluginNotAvailable  uint = 50  // STATUS: ADD would fail
	ErrLimitedConnectivity uint = 51  // STATUS: ADD would fail, and existing attachments are degraded
	ErrNetwork             uint = 100 // the network could not be set up, taken down or verified
	ErrPortInUse           uint = 101 // a host port is already bound or published
	ErrPortPermission      uint = 102 // a host port may not be bound by this user
)

// Errorf makes a CNI error of the given code. The text says what was being done
// to which object and why it failed; what to do about it is for Mendf.
func Errorf(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// Mendf adds to an error of this package what to do about it, and returns it. It is the
// error's "details" (specification section 5, "Error"); the command line prints it as a
// hint.
func Mendf(e *types.Error, format string, args ...any) *types.Error {
	e.Details = joined(e.Details, fmt.Sprintf(format, args...))
	return e
}

func joined(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// Remedy is what to do about an error; empty when nobody says.
func Remedy(err error) string {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e.Details
	}
	return ""
}

// Message is the text of an error without its CNI code and what to do about it.
func Message(err error) string {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e.Msg
	}
	return err.Error()
}

// HasCode says whether err is, or wraps, a CNI error of this code.
func HasCode(err error, code uint) bool {
	var e *types.Error
	return errors.As(err, &e) && e.Code == code
}

// Unsupported is code 2 of the specification: its message must contain the key
// and the value.
func Unsupported(key string, value any, why string) *types.Error {
	return Errorf(types.ErrUnsupportedField, "unsupported key %q with value %s: %s", key, show(value), why)
}

// Invalid is code 7 of the specification, naming the key, the value and what is
// allowed.
func Invalid(key string, value any, allowed string) *types.Error {
	return Errorf(types.ErrInvalidNetworkConfig, "invalid value %s of key %q: %s", show(value), key, allowed)
}

// show quotes a value as JSON-like text and cuts what is too long to read.
func show(value any) string {
	const most = 120
	s := fmt.Sprintf("%q", fmt.Sprint(value))
	if r, ok := value.(interface{ MarshalJSON() ([]byte, error) }); ok {
		if b, err := r.MarshalJSON(); err == nil {
			s = string(b)
		}
	}
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
