// Package names is the name server of a network: its containers find each other by name,
// and everything else is asked of the host's name servers.
//
// [Server] answers the queries that come to sockets which [Listen] has made. Who asks is known
// by the address, and gets the names of the networks that this container is in, no
// others. Which containers there are is read from the records, at each query if they have
// changed, so that a name is there when ADD returns, and gone when DEL does.
//
// As root one process for each network is the server, and [Place] says where it is; without
// root the hub's supervisor is.
//
// Start reading at [Server] in server.go. Where things are:
//
//	server.go      queries by UDP and TCP, and the bounds of a client
//	packets.go     the sockets of UDP: queries are read and answered many at a time
//	message.go     DNS messages (RFC 1035, RFC 6891): the query, the answer
//	directory.go   who has which name, and what the answer to a question is
//	members.go     the directory that the records make
//	forward.go     what is asked of others by UDP, and their time-outs
//	upstream.go    the sockets for that
//	stream.go      the same by TCP, where an answer was too long
//	resolvconf.go  the host's name servers, as they are now
//	listen.go      the sockets on which queries come
//	place.go       the server of a network as root: started, found, ended
//	process.go     its process
//	twin.go        the one that takes its place when it dies
//	confine.go     what that gives up
//
// It may import record, confine, scope, flock, memory and conf.
package names
