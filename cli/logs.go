package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) logsCommand() *cobra.Command {
	o := logsOptions{}
	c := &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "print what was logged about a container",
		Long: `Print the log of an attachment. Without root that is the log of its supervisor,
with what its driver says. In both modes come before it the lines about this
attachment in the file of the key logFile, when the network has one.`,
		Example:           "  ambi logs 3f2a --tail 20\n  ambi logs 3f2a --follow",
		Args:              arguments(1, 1, "CONTAINER"),
		ValidArgsFunction: a.completeOneContainer,
		RunE: func(c *cobra.Command, args []string) error {
			if o.tail < -1 {
				return usageError(c, "--tail is a number of lines, not %d", o.tail)
			}
			return a.logs(c.Context(), args[0], o)
		},
	}
	c.Flags().IntVarP(&o.tail, "tail", "n", -1, "only the last `number` of lines; -1 is all")
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with the supervisor's log until interrupted or its end")
	return c
}

type logsOptions struct {
	tail   int
	follow bool
}

func (a *app) logs(ctx context.Context, id string, o logsOptions) error {
	t, err := a.one(id)
	if err != nil {
		return err
	}
	verbs, verbsFile, err := t.verbLog()
	if err != nil {
		return err
	}
	lines, supervisor, err := t.supervisorLog()
	if err != nil {
		return err
	}
	if supervisor != nil {
		defer supervisor.Close()
	}
	if verbsFile == "" && supervisor == nil {
		return hinted(fmt.Errorf("%s has no log", t.Key),
			"as root ambi logs to the file of the key logFile, which this network does not have; what it says to the runtime is in the runtime's log")
	}
	lines = append(verbs, lines...)
	if o.tail >= 0 {
		lines = lines[max(0, len(lines)-o.tail):]
	}
	for _, line := range lines {
		if err := a.logLine(line); err != nil {
			return err
		}
	}
	if o.follow && supervisor != nil {
		return a.follow(ctx, supervisor)
	}
	return nil
}

// verbLog are the lines of the network's log file that are about this attachment.
func (t *attachment) verbLog() (lines []string, path string, err error) {
	if t.record == nil {
		return nil, "", nil
	}
	a, err := t.record.Attachment()
	if err != nil || a.NetConf.LogFile == "" {
		return nil, "", nil // a configuration that this ambi does not know any more
	}
	f, err := openLog(a.NetConf.LogFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("log file: %w", err)
	}
	defer f.Close()
	all, err := readLines(f)
	about := " attachment=" + t.String()
	for _, line := range all {
		if strings.Contains(line+" ", about+" ") {
			lines = append(lines, line)
		}
	}
	return lines, a.NetConf.LogFile, err
}

// supervisorLog is the log of the supervisor, open at its end; nil without one.
func (t *attachment) supervisorLog() ([]string, *os.File, error) {
	f, err := openLog(t.network().LogFile(t.Key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the supervisor's log: %w", err)
	}
	lines, err := readLines(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("the supervisor's log: %w", err)
	}
	return lines, f, nil
}

func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

func readLines(r io.Reader) ([]string, error) {
	var lines []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	return lines, s.Err()
}

// follow prints what is added to a log, until it is removed or we are interrupted.
func (a *app) follow(ctx context.Context, f *os.File) error {
	const pace = 200 * time.Millisecond
	var part string
	for {
		added, err := io.ReadAll(f)
		if err != nil {
			return fmt.Errorf("the supervisor's log: %w", err)
		}
		part += string(added)
		for {
			line, rest, whole := strings.Cut(part, "\n")
			if !whole {
				break
			}
			if err := a.logLine(line); err != nil {
				return err
			}
			part = rest
		}
		if removed(f) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pace):
		}
	}
}

// removed says that DEL has taken the log away. One that started anew, because it
// was full, is read from there.
func removed(f *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink == 0 {
		return true
	}
	if at, err := f.Seek(0, io.SeekCurrent); err == nil && at > st.Size {
		_, _ = f.Seek(0, io.SeekStart)
	}
	return false
}

// logEntry is one line of logs in JSON. A line that log/slog did not write, such as
// a crash, has msg alone.
type logEntry struct {
	Time  string            `json:"time,omitempty"`
	Level string            `json:"level,omitempty"`
	Msg   string            `json:"msg"`
	Attrs map[string]string `json:"attrs,omitempty"`
}

func (a *app) logLine(line string) error {
	if !a.json {
		fmt.Fprintln(a.out, a.screen.paint(levelStyle(line), line))
		return nil
	}
	e := json.NewEncoder(programs(a.out))
	e.SetEscapeHTML(false)
	return e.Encode(parseLogLine(line))
}

func levelStyle(line string) style {
	switch {
	case strings.Contains(line, " level=ERROR "):
		return red
	case strings.Contains(line, " level=WARN "):
		return yellow
	}
	return plain
}

// parseLogLine reads what slog.TextHandler wrote: key=value pairs, quoted where
// needed.
func parseLogLine(line string) logEntry {
	e := logEntry{Attrs: map[string]string{}}
	for rest := line; rest != ""; {
		key, after, ok := strings.Cut(rest, "=")
		if !ok || strings.ContainsAny(key, " \"") {
			return logEntry{Msg: line}
		}
		var value string
		if quotedText, err := strconv.QuotedPrefix(after); err == nil {
			value, _ = strconv.Unquote(quotedText)
			rest = strings.TrimPrefix(after[len(quotedText):], " ")
		} else {
			value, rest, _ = strings.Cut(after, " ")
		}
		switch key {
		case "time":
			e.Time = value
		case "level":
			e.Level = value
		case "msg":
			e.Msg = value
		default:
			e.Attrs[key] = value
		}
	}
	return e
}
