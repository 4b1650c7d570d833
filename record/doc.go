// Package record keeps the journal of attachments: one JSON file for each,
// written before anything happens to the host and again when it is done.
//
// # Crashes
//
// A record is replaced by rename, after fsync, in the same folder, so a reader
// sees the old one or the new one and never half of one. It is removed only
// after the clean-up succeeded. It helps and is never needed: DEL without a
// readable record works from its standard input.
//
// # Files of an attachment
//
// All share one base name in the state folder:
//
//	BASE.json   the record
//	BASE.lock   held (flock) by the verb at work on this attachment
//	BASE.alive  held (flock) by the supervisor and the driver while they live; what
//	            the supervisor says last
//	BASE.busy   held (flock) by the delegates while they run
//	BASE.log    the supervisor's log
//
// and, under a short name made from BASE, its control socket and the driver's
// API socket.
//
// # Where to find it
//
// Start reading at [Record] in record.go, then [Store] in store.go.
//
//	dirs.go      which folder is the state folder
//	follow.go    reads all records again when one has changed
//	holders.go   who holds a lock, and the wait until nobody does
//	process.go   what tells a process from a later one of the same number; its end
//	netns.go     the same of a network namespace
//	socket.go    sockets whose path is too long for bind(2)
//
// It may import flock, inside and conf.
package record
