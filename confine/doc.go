// Package confine has a process that lives long give up what it does not need: capabilities,
// files, system calls, and what it inherited from its caller. What a kernel cannot do is a
// [Lack], with which the process lives on, or does not begin (the key hardening).
//
// It imports nothing of ours. Start at [Ordinary], or at [Lacks] for what a kernel has.
package confine
