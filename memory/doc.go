// Package memory has a process that lives long, and mostly waits, hold little memory
// meanwhile.
//
// It imports nothing of ours. Start at [GiveBack].
package memory
