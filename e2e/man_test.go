package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestManPage compares docs/ambi.8 with the built binary: every command and every
// flag that --help shows is there, and none that it does not show.
func TestManPage(t *testing.T) {
	source, err := os.ReadFile("../docs/ambi.8")
	require.NoError(t, err)
	page := string(source)
	shown := map[string]bool{}
	for _, command := range append(commandsOf(t), "") {
		help, err := exec.Command("../bin/ambi", append(strings.Fields(command), "--help")...).Output()
		require.NoError(t, err, "run make build first")
		if command != "" {
			require.Regexp(t, `\.(It )?Cm `+command+`\b`, page, "command %q", command)
		}
		for _, flag := range regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([a-z-]+)`).FindAllStringSubmatch(string(help), -1) {
			shown[flag[2]] = true
			require.Regexp(t, `Fl (\w , )?-`+flag[2]+`\b`, page, "flag of ambi %s", command)
			if flag[1] != "" {
				require.Regexp(t, `Fl `+flag[1]+` , -`+flag[2]+`\b`, page, "short flag of ambi %s", command)
			}
		}
	}
	require.Greater(t, len(shown), 8)
	for _, flag := range regexp.MustCompile(`Fl (?:\w , )?-([a-z-]+)`).FindAllStringSubmatch(page, -1) {
		require.True(t, shown[flag[1]], "the man page has --%s, which no command has", flag[1])
	}
}

// commandsOf are the commands that the binary lists, and those below them.
func commandsOf(t *testing.T) (all []string) {
	listed := func(args ...string) (names []string) {
		help, err := exec.Command("../bin/ambi", append(args, "--help")...).Output()
		require.NoError(t, err, "run make build first")
		_, help2, _ := strings.Cut(string(help), "\nUsage:\n")
		help2, _, _ = strings.Cut(help2, "\nFlags:\n")
		for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+) {2,}\w`).FindAllStringSubmatch(help2, -1) {
			names = append(names, m[1])
		}
		return names
	}
	for _, name := range listed() {
		all = append(all, name)
		for _, below := range listed(name) {
			all = append(all, name+" "+below)
		}
	}
	require.Greater(t, len(all), 8)
	return all
}

// TestManPageIsWellWritten has those complain that are installed.
func TestManPageIsWellWritten(t *testing.T) {
	checked := 0
	for _, lint := range [][]string{{"mandoc", "-T", "lint", "-W", "warning", "../docs/ambi.8"}, {"groff", "-mdoc", "-Tascii", "-ww", "-z", "../docs/ambi.8"}} {
		if _, err := exec.LookPath(lint[0]); err != nil {
			continue
		}
		out, err := exec.Command(lint[0], lint[1:]...).CombinedOutput()
		// What mandoc says of pages that its database does not have is about this host.
		complaints := regexp.MustCompile(`(?m)^.*outdated mandoc\.db.*\n`).ReplaceAllString(string(out), "")
		require.Empty(t, complaints, "%v", err)
		checked++
	}
	if checked == 0 {
		t.Skip("neither mandoc nor groff is installed")
	}
}
