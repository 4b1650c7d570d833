// Package cli is ambi's command line: the verbs for people.
//
// A command prints what it found or did on standard output, as a table for people
// or, with --json, as the document that docs/cli.md shows. Errors go to standard
// error, each with a line "hint:" that says what to do. The exit status is 0 for
// success, 1 when something failed, 2 for a bad command line.
//
// # Where to find it
//
// Start reading at Main in cli.go, then list.go, a command that only looks. Each command
// is in the file of its name; doctor's checks are in doctor_*.go. What several share:
//
//	attachments.go               the attachments of this user, found and locked
//	health.go                    what is wrong with one
//	verb.go                      the plugin, called as a runtime calls it
//	people.go screen.go help.go  what people read: tables, colours, help texts
//	environment.go packages.go   this program, folders of plugins, package managers
//
// It may import install, names, root, rootless, rootless/driver, rootless/hub, rootless/supervisor, portmap/nat, record,
// confine, scope, inside and conf; not plugin, of which main hands it what it needs (Program).
package cli
