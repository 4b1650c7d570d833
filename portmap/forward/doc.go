// Package forward is rootlessport: it publishes ports of a container without
// root, in user space, and keeps the client's source address. It imports conf only. Start
// with this picture, then forwarder.go.
//
// The listening sockets are bound in the host's network namespace ([Listen]) and
// handed to a [Forwarder], which accepts there and reaches the container by
// sockets made inside the container's namespace ([Namespace]). A socket belongs
// to the namespace it was created in, whoever uses it later, so one process moves
// the bytes and no data crosses a process boundary.
//
// # Who does the work
//
//	callers' goroutines    Add, Remove, Stats and Close of the Forwarder, one at a time (Forwarder.mu).
//	                       What is a worker's they do not touch: they post a task into its inbox.
//	workers, 1 to 8        One goroutine around one epoll instance each, on raw non-blocking
//	                       descriptors; no goroutine is one connection's.
//	                       Where the Namespace is an Enterer, each is locked to a thread that
//	                       is inside the container's namespace for good, and makes sockets there.
//
// Everything is one worker's and needs no lock: the first worker has all TCP listeners
// and gives each connection to the worker that has least to do; UDP ports go to the
// workers one after the other, and a flow is with its port's. What all workers share is little, and
// locks itself: routes, pipes, the counters of a port. A forwarder without ports has no
// worker at all.
//
// A worker's loop (worker.run) is one round after the other:
//
//	wait for events -> ready of each event's handler -> resume of those that had more to do
//	    ^                                                    |
//	    +---- tasks from the inbox <---- what is due <-------+
//
// A handler is a listener, a UDP port, a connection or a flow. The poller gives each a
// seat, an index that its descriptors' events carry, together with the seat's generation:
// the two are the handler's ticket. An event for a handler that was closed a moment ago,
// in the same round, has an old generation and finds nobody. Descriptors of data are
// edge-triggered: the kernel tells once that there is something to read, or room to
// write, and the handler remembers it until it meets EAGAIN.
//
// A handler works for a turn, which is 16 reads of each way of a connection or one batch
// of datagrams, and asks to be resumed in the next round if it has more (worker.again), so
// that a busy one does not starve the others. How long a
// worker sleeps is its patience: until the next time-out of anything it has. How it sleeps
// depends on its pace: with short messages it asks again and again for 100 µs before it
// does, as a wake-up is most of a round trip; with bulk its thread becomes a batch one,
// which does not push senders aside.
//
// # A TCP connection
//
//	        a client's connection is in the kernel's accept queue
//	             |
//	listener.ready -- no descriptor left --> paused: 100 ms, or until a connection ends or comes
//	             |  a spare socket inside, or a new one; then accept4(2)
//	worker.connect      by now the worker that will keep it
//	             |  binds the socket inside to the client's address, connects to the service;
//	             |  if that cannot be had: another port of that address, then the gateway's
//	        awaiting -- refused, client gone, or 15 s --> abort: both sides are reset
//	             |  the service has answered
//	        relaying: two ways, up to the service and down to the client, each by itself
//	             |    copySmall   reads 4 KiB, writes; what is not taken is held in memory
//	             |    copyPeeked  after a full read: looks at 64 KiB (MSG_PEEK), takes what was written
//	             |    splice      after three full ones: through a pipe, if the pool has one
//	             |  -- a side was reset --> lastWords: what it had sent is delivered, then abort
//	             |  end of file on one way: passed on (shutdown(2)), the other way goes on
//	        close       when both have ended; TIME_WAIT inside is taken away
//
// While a reader stands still, what it does not take stays in the kernel with its sender,
// but for 4 KiB at the most.
//
// # A UDP flow
//
// A flow is one client's conversation with one port: one connected socket inside.
// Datagrams go in batches of 32 (recvmmsg(2), sendmmsg(2)) through buffers that all flows
// of a worker share.
//
//	udpPort.ready   a batch from the host's socket; each datagram's client and local
//	     |          address are the key of its flow
//	     |-- there is a flow --> flow.toService
//	     |-- a full batch: it waits, and one flow is opened in each round (udpPort.resume)
//	     |-- the table is full: the oldest flow without a reply, else of a single
//	     |   exchange, else of another client or port with more than a quarter of all, gives
//	     |   way; else the datagram is dropped
//	openFlow        the socket inside, bound as a TCP connection's is, and the route back
//	     |
//	unreplied ----- nothing for 30 s ----> closed
//	     |  flow.ready: the service has replied
//	replied ------- nothing for 180 s ---> closed
//	     |  the client has gone on
//	conversing ---- nothing for 180 s ---> closed
//
// # Source address
//
// The socket inside is bound to the client's own address with IP_TRANSPARENT
// (ip(7)). For the service's replies there is a rule for each published port and a route
// for each client, which [Namespace] installs; routes counts who needs which. The service
// sees one of three origins: the client itself, the client from another port, or the
// gateway. The gateway it is for addresses that a service must never see from outside,
// such as 127.0.0.1 (CVE-2021-20199), and for clients that cannot be preserved.
//
// # When descriptors run short
//
// A reserve of 64 descriptors, or a quarter of few, is for what else the process does. A
// socket inside must be below it (descriptorBudget.most): where it is not, a UDP client
// gets that of an older flow, and a listener pauses. The client's own socket, which is
// accepted after that one, may be in the first half of the reserve, up to never. Pipes (64 at most, and 16 MiB together) are taken by a way only
// while it has data in one.
//
// # When not everybody can be let in
//
// A client alone may have all connections there can be; those that are too many wait in the
// listener's queue. It is looked (sock_diag) who waits there, when descriptors run short and
// when the queue is long. While somebody is seen who has clearly less than another one, not half
// as many, the first worker's door is open:
//
//	listener.letIn -- all that wait are accepted, and gone through
//	     |-- no descriptor left, and nobody has clearly more --> reset (gaveWay)
//	     |-- no descriptor left: one of whoever has most is ended (gaveWay)
//	door.turns        a row for each client, and one of each in turns
//	     |-- reset by the client meanwhile --> closed, nothing else was done for it
//	     |-- the client gave way in this round, and has what was left to it --> waits
//	worker.connect    as any other one
//
// # Where to find it
//
//	forwarder.go config.go port.go listen.go   what callers see: Forwarder, Config, ports, binding
//	stats.go                                   counters
//	worker.go poll.go timers.go pace.go        the engine: rounds, seats, time-outs, sleeping
//	accept.go tcp.go relay.go splice.go        TCP: accepting, connecting, moving bytes, pipes
//	door.go queue.go guests.go                 TCP: fairness where there is not room for all
//	settle.go                                  TCP that leaves: which worker it is for
//	congestion.go timewait.go                  TCP: no pacing and no TIME_WAIT within one kernel
//	udp.go flow.go datagrams.go outgoing.go    UDP: ports, flows, receiving, sending batches
//	target.go routes.go                        what the service sees of a client; the way back
//	sockets.go nofile.go                       making sockets inside; how many descriptors there are
//	sys.go sockaddr.go                         system calls, and addresses as the kernel has them
package forward
