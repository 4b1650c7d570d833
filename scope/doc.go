// Package scope keeps processes that live long out of the unit and the cgroup of whoever
// happened to start them: a network outlives the unit of its first container. Where there is
// a manager of systemd it is asked for a scope (systemd.scope(5)); else, where the caller may
// make cgroups of version 2 (cgroups(7)) outside of its own, for one of those.
//
// It imports nothing of ours. Start reading with [Find].
package scope
