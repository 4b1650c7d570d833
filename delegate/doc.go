// Package delegate runs the CNI plugins of a host, the delegates, in the way the
// CNI specification 1.1.0 asks of a plugin that delegates (section 4) and of a
// runtime that runs a list of plugins (section 3), over pkg/invoke.
//
// A [Chain] is the delegates of one attachment. [Chain.Add] runs them in order
// and undoes everything when one fails; [Chain.Del] runs them in reverse, and
// hands them a stand-in namespace when the container's own is gone, so that
// rules bound to the interface's addresses go too. [Default] is the chain of a
// network that names no delegates.
//
// # What a delegate gets
//
// Its own configuration byte for byte, with name, cniVersion, prevResult, its
// share of runtimeConfig and (where it has none of its own) args appended, and
// our own environment with CNI_COMMAND changed. See stdin.go and environ.go.
//
// # Errors
//
// Every error is a *types.Error: the delegate's own code, and its message with
// the delegate's type in front. Codes of ours are 1 (the delegate speaks no
// version we can use), 6 (it printed something that is not a result), 11 (it did
// not finish in time and was killed), 50 (its binary is missing) and 100.
//
// It may import flock, inside and conf. Start reading at [Chain] in chain.go, then add.go
// and del.go.
package delegate
