// Package plugin is ambi as a CNI plugin: the verbs of the specification as
// straight lists of steps, the choice between root and rootless, and results.
//
// A verb parses its input once, into a conf.Attachment. Nothing below reads the
// environment, standard input or the command line.
//
// Start reading at add in verbs.go. The interface network there is the one seam: Add,
// Check and Del, which root.Network and rootless.Network have. This package knows
// neither delegates nor ports.
//
// It may import root, rootless, record, confine and conf.
package plugin
