// Package keeper is the twin of a hub's supervisor: a process that only waits. It holds, by
// descriptor, all that would end with the supervisor, namespaces, listening sockets and locks,
// and starts another supervisor when that has ended, which takes them over. The supervisor in
// turn starts another keeper.
//
// What a keeper holds are items: a key, a value that only supervisors understand, and files.
// The two talk over a pair of sockets, in messages (message.go) whose form has a version.
//
// A keeper has no effective capability, asks nobody anything and reads nothing but its twin's messages.
// Its life (life.go) is one thread in poll(2), so that its memory is that of a program that has
// just started.
//
// It imports confine and memory. Start at Main.
package keeper
