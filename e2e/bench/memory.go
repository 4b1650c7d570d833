package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memory is what processes hold, in MB: resident is what counts everything mapped,
// shared pages too; proportional (PSS) has of a page that others share their part only;
// private is what would come free with them.
type memory struct {
	Processes int     `json:"processes"`
	Resident  float64 `json:"residentMB"`
	Private   float64 `json:"privateMB"`

	Proportional float64 `json:"proportionalMB"`
}

// memoryOf adds up the processes that run one of these programs.
func memoryOf(programs ...string) (memory, error) {
	var sum memory
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return sum, err
	}
	for _, link := range links {
		program, err := os.Readlink(link)
		if err != nil || !isOneOf(filepath.Base(program), programs) {
			continue
		}
		if err := sum.add(filepath.Dir(link)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return sum, err
		}
	}
	if sum.Processes == 0 {
		return sum, fmt.Errorf("no process runs %s", strings.Join(programs, " or "))
	}
	return sum, nil
}

const (
	settledFor  = 500 * time.Millisecond
	settledMost = 5 * time.Second
)

// settled reads until the resident memory has not fallen for a moment.
func settled(read func() (memory, error)) (memory, error) {
	var least memory
	begin := time.Now()
	last := begin // when it fell
	for {
		m, err := read()
		if err != nil {
			return m, err
		}
		now := time.Now()
		if least.Processes == 0 || m.Resident < least.Resident {
			least, last = m, now
		}
		if now.Sub(last) > settledFor || now.Sub(begin) > settledMost {
			return m, nil
		}
		time.Sleep(settledFor / 10)
	}
}

// isOneOf takes passt.avx2 for passt, which chooses among its variants at the start.
func isOneOf(name string, programs []string) bool {
	name, _, _ = strings.Cut(name, ".")
	for _, p := range programs {
		if name == p {
			return true
		}
	}
	return false
}

func (m *memory) add(process string) error {
	f, err := os.Open(process + "/smaps_rollup")
	if err != nil {
		return err
	}
	defer f.Close()
	m.Processes++
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		field := strings.Fields(lines.Text())
		if len(field) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(field[1], 64)
		switch field[0] {
		case "Rss:":
			m.Resident += kb / 1000
		case "Pss:":
			m.Proportional += kb / 1000
		case "Private_Clean:", "Private_Dirty:":
			m.Private += kb / 1000
		}
	}
	return lines.Err()
}
