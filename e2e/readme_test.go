package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// session is a shell block of the README with what the comment above it says of it.
type session struct {
	text  string
	user  bool
	twice bool // it leaves the machine as it finds it, from the second time on
}

// sessions are the shell blocks of the README that are typed here. Each block has to
// say who types it; what takes too long for a test, CI does.
func sessions(t *testing.T) (all []session) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?m)^<!-- typed by e2e/readme_test.go, as (root|user)(, twice)? -->\n```sh\n((?:[^`].*\n|\n)*)```$")
	for _, m := range block.FindAllStringSubmatch(string(readme), -1) {
		all = append(all, session{text: m[3], user: m[1] == "user", twice: m[2] != ""})
	}
	ci, err := os.ReadFile("../.ci/run")
	require.NoError(t, err)
	long := regexp.MustCompile("(?m)^<!-- typed by \\.ci/run -->\n```sh\n(.*\n)```$").FindAllStringSubmatch(string(readme), -1)
	for _, m := range long {
		require.Contains(t, "\n"+string(ci), "\n"+strings.TrimSpace(m[1]), "what the README says that CI types")
	}
	shells := regexp.MustCompile("(?m)^ *```(sh|bash|shell|console|sh-session)").FindAllString(string(readme), -1)
	require.Len(t, shells, len(all)+len(long), "shell blocks of the README, and those with a comment that says who types them")
	return all
}

// TestReadme types every shell block of the README as it stands, in its order, in
// one machine whose root file system and checkout have a layer on top, so that
// installing changes neither.
func TestReadme(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	t.Parallel()
	require.NotEmpty(t, sessions(t))
	out, err := inMachine("^TestReadmeInside$", "AMBI_E2E_README=1").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, 2, strings.Count(string(out), "machine unchanged"))
	t.Logf("%s", out)
}

// TestReadmeInside is the inner half of TestReadme.
func TestReadmeInside(t *testing.T) {
	if os.Getenv("AMBI_E2E_README") == "" {
		t.Skip("TestReadme runs it, in a machine of its own")
	}
	all := sessions(t)
	require.NoError(t, furnish())
	_, err := layer()
	require.NoError(t, err)
	require.NoError(t, layeredCheckout())
	require.NoError(t, withoutCache())
	for i, s := range all {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			s.run(t)
			if !s.twice {
				return
			}
			before := machine.Take()
			s.run(t)
			require.Empty(t, snapshot.Await(patience, before, machine.Take))
			t.Log("machine unchanged")
		})
	}
}

// withoutCache makes /var/lib/cni what it is on a host where nobody has used CNI yet:
// not there.
func withoutCache() error {
	// The machine's own is mounted there, and seen a second time through /run.
	const script = `awk '$2 ~ "/var/lib/cni$" {print $2}' /proc/self/mounts | xargs -r umount && rm -rf /var/lib/cni`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("removing /var/lib/cni: %w: %s", err, out)
	}
	return nil
}

// layeredCheckout lets the sessions build in the checkout, which everybody else's
// tests use at the same time.
func layeredCheckout() error {
	const base = stage + "/over"
	script := fmt.Sprintf(`mkdir %[1]s && mount -t tmpfs -o mode=0755 tmpfs %[1]s && mkdir %[1]s/upper %[1]s/work &&
mount -t overlay -o lowerdir=%[2]s/checkout,upperdir=%[1]s/upper,workdir=%[1]s/work overlay %[2]s/checkout`, base, stage)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("a layer over the checkout: %w: %s", err, out)
	}
	return nil
}

func (s session) run(t *testing.T) {
	argv := []string{"timeout", "-k", "60", "1800", "bash", "-e", "-m", "-c", s.text}
	if s.user {
		argv = append([]string{stage + "/sbin/asuser"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = stage + "/checkout"
	cmd.WaitDelay = patience // for what a session that failed has left in the background
	out, err := cmd.CombinedOutput()
	t.Logf("\n%s", out)
	require.NoError(t, err)
	if asked := strings.Count(s.text, "peer get "); asked > 0 {
		require.Equal(t, asked, strings.Count(string(out), "hello 10.89."), "answers through published ports")
	}
}
