package cli

import (
	"os"
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

// quoted is a word of a shell's command line.
func quoted(s string) string {
	const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+,="
	if s != "" && strings.Trim(s, harmless) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
