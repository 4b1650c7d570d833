package supervisor

import (
	"io"
	"log/slog"
	"os"
	"sync"
)

// logLimit bounds the supervisor's log file; when it is full the file starts anew
// with its own last part.
const (
	logLimit = 1 << 20
	logKept  = 64 << 10
)

// logFile is an io.Writer over an open file, opened for appending.
type logFile struct {
	mu   sync.Mutex
	file *os.File
	size int64
}

func newLogFile(f *os.File) *logFile {
	l := &logFile{file: f}
	if st, err := f.Stat(); err == nil {
		l.size = st.Size()
	}
	return l
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(b)) > logLimit {
		l.shorten()
	}
	n, err := l.file.Write(b)
	l.size += int64(n)
	return n, err
}

func (l *logFile) shorten() {
	kept := make([]byte, logKept)
	n, err := l.file.ReadAt(kept, max(0, l.size-logKept))
	if err != nil && err != io.EOF {
		n = 0
	}
	if l.file.Truncate(0) == nil {
		n, _ = l.file.Write(kept[:n])
		l.size = int64(n)
	}
}

func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	if l.UnmarshalText([]byte(level)) != nil {
		l = slog.LevelInfo
	}
	return slog.New(newSparing(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})))
}
