package cli

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTableFitsTheTerminal(t *testing.T) {
	list := table{head: []string{"NAME", "PORTS", "STATE"}, right: map[int]bool{}, narrow: []limit{{0, 4}, {1, 6}}}
	list.add([]cell{{text: strings.Repeat("n", 30)}, {text: strings.Repeat("ä", 30)}, {text: "up", how: green}})
	list.add(cells("a\tb\x1b[2J", "", "gone"))
	for width, want := range map[int]string{
		0: "NAME                            PORTS                           STATE\n" +
			strings.Repeat("n", 30) + "  " + strings.Repeat("ä", 30) + "  up\n" +
			"a?b?[2J                         -                               gone\n",
		50: "NAME         PORTS                           STATE\n" +
			"nnnnnnnnnn…  " + strings.Repeat("ä", 30) + "  up\n" +
			"a?b?[2J      -                               gone\n",
		10: "NAME  PORTS   STATE\nnnn…  äääää…  up\na?b…  -       gone\n",
	} {
		var b strings.Builder
		list.print(&b, screen{width: width})
		require.Equal(t, want, b.String(), width)
	}
	var b strings.Builder
	list.print(&b, screen{terminal: true, width: 80, colour: true})
	require.Contains(t, b.String(), "\x1b[32mup\x1b[0m")
}

func TestWrapped(t *testing.T) {
	s := screen{width: 30}
	require.Equal(t, "one two three four\n          five six", s.wrapped("one two  three four five six", 10))
	require.Equal(t, "one two three", screen{}.wrapped("one two three", 10), "whole where nobody looks")
}

func TestHumanUnits(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 101 << 10: "101 KiB", 1<<20 - 1: "1024 KiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		require.Equal(t, want, bytesText(n))
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min", 90 * time.Minute: "1 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 d",
	} {
		require.Equal(t, want, ageText(d))
	}
}

func TestHintsOfJoinedErrors(t *testing.T) {
	err := errors.Join(hinted(errors.New("a"), "mend a"), nil, usageHint(hinted(errors.New("b"), "mend b"), "use b"))
	require.Equal(t, []string{"mend a", "use b", "mend b"}, hintsOf(err))
	require.Equal(t, "a\nb", err.Error())
	require.ErrorIs(t, err, errUsage)
}

func TestParseLogLine(t *testing.T) {
	require.Equal(t, logEntry{Time: "2026-01-01T00:00:00Z", Level: "WARN", Msg: "a \"b\" c", Attrs: map[string]string{"x": "1", "y": "p=q r"}},
		parseLogLine(`time=2026-01-01T00:00:00Z level=WARN msg="a \"b\" c" x=1 y="p=q r"`))
	for _, line := range []string{"panic: oops", "goroutine 1 [running]:", `no "key" = here`} {
		require.Equal(t, logEntry{Msg: line}, parseLogLine(line))
	}
}

func TestQuoted(t *testing.T) {
	for in, want := range map[string]string{"/run/ambi": "/run/ambi", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "~": "'~'"} {
		require.Equal(t, want, quoted(in))
	}
}

// The sysctls that this kernel may not have.
func TestRestrictionOf(t *testing.T) {
	for _, tt := range []struct {
		values    map[string]int
		why, mend string
	}{
		{map[string]int{"kernel.unprivileged_userns_clone": 0, "user.max_user_namespaces": 15000}, "kernel.unprivileged_userns_clone is 0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{map[string]int{"kernel.apparmor_restrict_unprivileged_userns": 1}, "kernel.apparmor_restrict_unprivileged_userns is 1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{map[string]int{"user.max_user_namespaces": 0}, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000"},
		{map[string]int{"user.max_net_namespaces": 1}, "user.max_net_namespaces is 1", "sysctl -w user.max_net_namespaces=15000"},
		{map[string]int{"kernel.unprivileged_userns_clone": 1, "kernel.apparmor_restrict_unprivileged_userns": 0, "user.max_user_namespaces": 15000},
			"no sysctl says so: a seccomp filter or security module around this process does, or there are too many namespaces", ""},
	} {
		why, mend := restrictionOf(func(key string) (int, bool) { n, ok := tt.values[key]; return n, ok })
		require.Equal(t, tt.why, why)
		require.Equal(t, tt.mend, mend)
	}
}
