package cli

import (
	"os"
	"os/exec"
	"strings"
)

// usualCNIPath are the folders of plugins that runtimes and distributions use.
var usualCNIPath = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni", "/usr/local/lib/cni"}

// cniPath is CNI_PATH, or the usual folders without it.
func cniPath() string {
	if path := os.Getenv("CNI_PATH"); path != "" {
		return path
	}
	return strings.Join(usualCNIPath, ":")
}

// self is the path of this program.
func self() string {
	if path, err := os.Executable(); err == nil {
		return path
	}
	return "ambi"
}

// command is a command line of ours that works as it stands: plugin folders are
// mostly not in PATH, and the state folder may be one that was asked for.
func (a *app) command(words string) string {
	program := "ambi"
	if path, err := exec.LookPath(program); err != nil || !sameFile(path, self()) {
		program = quoted(self())
	}
	if a.stateDir != "" {
		words += " --state-dir " + quoted(a.stateDir)
	}
	return program + " " + words
}

func sameFile(a, b string) bool {
	left, err1 := os.Stat(a)
	right, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(left, right)
}

// quoted is a word of a shell's command line.
func quoted(s string) string {
	const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+,="
	if s != "" && strings.Trim(s, harmless) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
