// Package nlsock talks to the kernel over netlink(7): with one [Socket], which works in
// the network namespace in which it was opened, whoever uses it, and may so be opened
// by one process and handed to another. It knows what all messages have in common;
// what is in them is its users' business.
//
// It imports nothing of ours. Start at [Socket] in socket.go.
package nlsock
