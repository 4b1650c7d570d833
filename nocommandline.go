//go:build ambi_nocli

package main

import (
	"fmt"
	"os"
)

// commandLine of a build without one (go build -tags ambi_nocli): the plugin alone,
// for an image that nobody logs in to, and to measure what the command line costs.
func commandLine([]string) int {
	fmt.Fprintln(os.Stderr, "ambi: this build has no command line (build tag ambi_nocli)")
	return 2
}
