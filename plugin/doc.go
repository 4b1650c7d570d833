// Package plugin is ambi as a CNI plugin: the verbs of the specification as
// straight lists of steps, the choice between root and rootless, and results.
//
// A verb parses its input once, into a conf.Attachment. Nothing below reads the
// environment, standard input or the command line.
package plugin
