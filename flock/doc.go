// Package flock is the one way in which ambi locks files (flock(2)). Every wait ends
// with its context. The kernel lets go of a lock when the last process that inherited its
// descriptor has ended, however that happens.
//
// It imports nothing of ours. Start at [Lock].
package flock
