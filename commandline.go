//go:build !ambi_nocli

package main

import (
	"github.com/ambi-cni/ambi/cli"
	"github.com/ambi-cni/ambi/plugin"
)

// commandLine runs a command for people.
func commandLine(args []string) int {
	return cli.Main(cli.Program{Version: buildVersion(), Mode: plugin.ModeHere}, args)
}
