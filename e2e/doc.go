// Package e2e drives the built binary from outside: the real cnitool, the
// standard plugins, slirp4netns, and real namespaces. The scripts under testdata
// read as documentation.
//
// # Machines
//
// Each script runs in a machine of its own: new network, mount and process
// namespaces, an empty /run and /tmp, and a neighbour host one veth away. Most of its
// time the kernel waits (namespaces and devices come and go by RCU), so that many more
// run at once than there are processors: make test says how many. So
// scripts run side by side, never touch the host, cannot leave anything behind
// whatever happens in them, and can ask whether ambi did: "snapshot" before and
// "unchanged" after compare the whole machine. Package lab makes them.
//
// # What scripts can say
//
// Besides the commands of testscript:
//
//	netns NAME            make a namespace as root; $NAME is its path
//	userns NAME [FLAGS]   a process of the user in namespaces of its own (unshare
//	                      FLAGS, -Urn by default); $NAME is its network namespace's
//	                      path, $NAME_PID its pid
//	stopns NAME           end that process
//	inside NAME CMD…      run CMD in the namespace (& as usual)
//	poll CMD…             run CMD until it succeeds
//	process COLUMN CMD…   the process that CMD prints is as SECURITY.md's table says
//	snapshot              remember the machine
//	unchanged             the machine is as remembered (a namespace made since has
//	                      to be gone, too)
//	unchanged eventually  the same, now or when the kernel and what leaves by itself
//	                      have had their time
//
// With AMBI_TEST_ROUNDS=N scripts that do something again and again do it N times, and with
// AMBI_TEST_BIG=1 those that can be large are: minutes, and gigabytes of traffic.
//
// No wait has a limit that a slow and busy machine could reach: what hangs is ended
// after five minutes.
//
// and these programs: asuser CMD… (run as an unprivileged user), stranger CMD… (run as another one),
// onneighbour CMD… (run on the neighbour host), fakeroot CMD… (unshare -Ur as the user), verb VERB
// NETNS FILE (one call of the plugin, whose output must be one JSON document or
// nothing), try VERB NETNS MEMBERS (the same with a configuration of these members
// beside version, name and type; without root in a private network unless they say another), makeslirp FILE OPTION… (a slirp4netns of before
// these options), slay NAME [WORD] (kill -9 and the wait for the end; "slay ambi" takes the keeper along), twins (the wait until supervisor and keeper could be without each other), freeze NAME (kill -STOP and the wait for it), running …
// (pgrep of what has not ended), descriptors
// PID (what a process has open), inhub CMD… (run in the hub's network namespace), incgroups CMD… and incgroup FOLDER CMD… (run in cgroups of the machine's own, and in one of them), member VERB NAME NUMBER (one container
// of the network "web", with address .NUMBER and host port 8080 + NUMBER), peer (see its source). The machine is 192.0.2.1 and 2001:db8::1, its neighbour .2 and ::2.
//
// # Callers
//
// The scripts under callers have the engines that people run call ambi. Their
// machines have the engines' folders empty, ambi in /opt/cni/bin, a user with
// subordinate ids, the root of a container with busybox and peer in it (as the
// folder /run/e2e/rootfs, as box.tar, as the image box-image.tar), and forgetdns
// (what a container itself asked a name server is no leftover).
//
// # Kubernetes
//
// The scripts under kubernetes are chapters in the life of one node (kubernetes_test.go
// has their order), whose programs kubernetes/node starts. They have kubectl, ctr,
// "service" and the small programs of kubernetes/node/bin; their poll has more patience.
// What a chapter leaves is there in the next one. kubernetes/kube is the programs of
// Kubernetes, in a Go module of its own.
//
// # What else is here
//
//	lab          makes every machine; lab/unit the namespaces of the rooms' own tests
//	snapshot     all that a machine has, and what differs from before
//	peer         clients and servers for scripts
//	fault        fails or kills verbs at every step (make fault)
//	soak         random verbs and kills, for as long as you like (make soak)
//	bench        ambi and others side by side (make bench)
//	deaths       kills what ambi leaves running, while clients use it (peer deaths)
//	chart        draws for bench and soak
//	conformance  tries any CNI plugin against the specification; a Go module of its own
//
// Nothing here imports a room of ambi. CONTRIBUTING.md says how to run one script.
package e2e
