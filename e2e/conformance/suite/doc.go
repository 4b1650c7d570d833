// Package suite has the points that a CNI plugin must satisfy, as programs: each tries
// one thing from outside, with the plugin's binary, in namespaces of its own, and says
// passed, failed, or not applicable and why.
//
// # Points
//
// The table in points.go has an entry for each. Its basis says where it comes from: a
// section of the specification (S1 to S5 of SPEC.md 1.1.0), CONVENTIONS.md, or practice,
// which no text asks for. To add a point, add an entry and its function.
//
// A function gets a lab: a machine, the plugin and its network. It returns when the
// point is passed; lab.fail and lab.inapplicable end it otherwise, lab.saw notes what is
// worth telling.
//
// # Machines
//
// Each point runs in a process of its own, in new network, mount and process
// namespaces with empty /run, /tmp and /var/lib/cni. So points run side by side, touch
// nothing of the host, and can compare the whole machine before and after (package
// snapshot). The suite is the runtime there: it makes the containers' namespaces, runs
// the plugins that are before this one in the conflist, and derives what the plugin gets
// as section 3 of the specification says.
//
// They are not those of ambi's own tests (package lab): these work without root, too, in
// a user namespace, have any plugin under its own name, and no neighbour host.
//
// # Delegates
//
// Where the plugin delegates, the delegate is the scripted plugin (package scripted),
// which writes down what it is given, and fails, hangs and prints as it is told. The
// option DelegateKey says where the plugin takes it.
//
// The suite knows no plugin. A program that calls Run calls Main first: it is started
// again for each point, and as the scripted plugin.
package suite
