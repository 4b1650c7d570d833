package plugin

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// verbLog is the log of one verb: to standard error and to logFile, never to
// standard output, which has the result. Neither configurations nor CNI_ARGS go
// into it.
type verbLog struct {
	*slog.Logger
	file          *os.File // of logFile; nil without
	verb          string
	about         slog.Attr
	started, last time.Time
}

// openLog has everything that logLevel asks for in logFile, and on standard error
// as well when the key is there. Without it those are warnings and errors, since
// runtimes show or keep what a plugin says there.
func openLog(n *conf.NetConf) *verbLog {
	var level slog.Level
	_ = level.UnmarshalText([]byte(n.LogLevel)) // it was parsed
	toStderr := slog.LevelWarn
	if n.LogLevelSet {
		toStderr = level
	}
	l := &verbLog{}
	handlers := []slog.Handler{slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: toStderr})}
	var err error
	if n.LogFile != "" {
		l.file, err = os.OpenFile(n.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err == nil {
			handlers = append(handlers, slog.NewTextHandler(l.file, &slog.HandlerOptions{Level: level}))
		}
	}
	l.Logger = slog.New(slog.NewMultiHandler(handlers...))
	if err != nil {
		l.Warn("log file", "error", err)
	}
	return l
}

func (l *verbLog) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// begin says what the lines are about, and logs the first step, which was over before
// there was a log to write it into: the verb began when started says.
func (l *verbLog) begin(verb string, key conf.Key, started time.Time, first string) {
	l.verb, l.started, l.last = verb, started, started
	l.about = slog.Any("attachment", key)
	if verb == "GC" || verb == "STATUS" {
		l.about = slog.String("network", key.Network)
	}
	l.step(first)
}

// step logs, at debug level, how long it is since the step before.
func (l *verbLog) step(name string) {
	now := time.Now()
	l.Debug(l.verb, l.about, "step", name, "duration", now.Sub(l.last).Round(time.Microsecond))
	l.last = now
}

// outcome is the one line that each verb has.
func (l *verbLog) outcome(err error) {
	args := []any{l.about, "duration", time.Since(l.started).Round(time.Microsecond)}
	if err == nil {
		l.Info(l.verb, append(args, "outcome", "ok")...)
		return
	}
	args = append(args, "outcome", "failed")
	if e, ok := errors.AsType[*types.Error](err); ok {
		args = append(args, "code", e.Code)
	}
	l.Error(l.verb, append(args, "error", err)...)
}
