package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a text holds is not a terminal's to obey; what paint writes is.
func TestPeople(t *testing.T) {
	var b strings.Builder
	s := screen{terminal: true, width: 80, colour: true, ink: newInk()}
	out := &people{&b, s.ink}
	text := "a\x1b[31mb\x9b2J\u009bc\x07\rd\x7f\u202ee\tü\n"
	n, err := out.Write([]byte(text + s.paint(green, "up\x1b[1m") + s.paint(red, "") + "\n"))
	require.NoError(t, err)
	require.Greater(t, n, len(text))
	require.Equal(t, "a?[31mb\ufffd2J?c??d??e\tü\n\x1b[32mup?[1m\x1b[0m\n", b.String())

	b.Reset()
	_, err = (&people{to: &b}).Write([]byte("\x1b[1mbold\x1b[0m"))
	require.NoError(t, err)
	require.Equal(t, "?[1mbold?[0m", b.String(), "without colours nothing is a style")
}

// Errors and hints go the same way.
func TestErrorsForPeople(t *testing.T) {
	var out, errOut strings.Builder
	a := &app{out: &out, errOut: &errOut}
	require.Equal(t, misuse, a.run(t.Context(), []string{"list", "--\x1b[2J"}))
	a = &app{out: &out, errOut: &errOut, messages: screen{colour: true, ink: newInk()}}
	a.errOut = &people{&errOut, a.messages.ink}
	a.complain("ambi", hinted(errors.New("/tmp/\x1b[8mx: no such file"), "mv '/tmp/\x1b[8mx' /tmp/y"))
	require.NotContains(t, strings.NewReplacer("\x1b[31m", "", "\x1b[1m", "", "\x1b[0m", "").Replace(errOut.String()), "\x1b")
	require.Contains(t, errOut.String(), "\x1b[31mambi:\x1b[0m /tmp/?[8mx: no such file\n\x1b[1mhint:\x1b[0m mv '/tmp/?[8mx' /tmp/y\n")
	require.Empty(t, out.String())
}
