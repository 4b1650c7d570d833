// Package driver is the way out of a rootless network: a program that carries what
// goes out through the container's interface, and what comes back, to the host's
// network. It finds the program and what it can do, says which addresses it gives,
// starts and ends it, keeps the host's loopback closed to it, and publishes ports by it
// where it can do that itself.
//
// slirp4netns, pasta and relay are the drivers, and nothing outside this room knows them:
// what others need is in Driver, Program and Process.
//
// A verb finds the driver and works out the Command and the addresses; the supervisor
// starts the Command, and does so again when the process has ended.
//
// The driver relay is none of a program, but a part of ambi (rootless/relay).
//
// It imports rootless/relay, rootless/plan, record, confine and conf. Start at driver.go.
package driver
