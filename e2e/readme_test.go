package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// TestReadme types the two sessions of the README as they stand, one as root and
// one as a user, each in a machine.
func TestReadme(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	for name, session := range map[string]struct{ after, as string }{
		"root": {"\nAs root:\n", ""},
		"user": {"\nAs a user, ", "asuser"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := sessionAfter(t, session.after)
			out, err := inMachine("^TestReadmeInside$", "AMBI_E2E_SESSION="+text, "AMBI_E2E_AS="+session.as).CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), "hello 10.", "the answer of the server through the published port")
			require.Contains(t, string(out), "machine unchanged")
		})
	}
}

// sessionAfter is the first sh block behind the given words.
func sessionAfter(t *testing.T, words string) string {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), words)
	require.True(t, ok, "README has no %q", words)
	_, rest, ok = strings.Cut(rest, "```sh\n")
	require.True(t, ok)
	session, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	return session
}

// TestReadmeInside is the inner half of TestReadme.
func TestReadmeInside(t *testing.T) {
	session, ok := os.LookupEnv("AMBI_E2E_SESSION")
	if !ok {
		t.Skip("TestReadme runs it, in a machine of its own")
	}
	require.NoError(t, furnish())
	run := func() {
		argv := []string{"bash", "-e", "-m", "-c", session}
		if as := os.Getenv("AMBI_E2E_AS"); as != "" {
			argv = append([]string{stage + "/sbin/" + as}, argv...)
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = stage + "/checkout"
		out, err := cmd.CombinedOutput()
		t.Logf("\n%s", out)
		require.NoError(t, err)
	}
	run() // as root the bridge stays, from the first time on
	before := machine.Take()
	run()
	require.Empty(t, snapshot.Await(patience, before, machine.Take))
	t.Log("machine unchanged")
}
