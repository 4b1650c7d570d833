package main

import "slices"

// cell is one forwarder in one row, over all rounds.
type cell struct {
	Values []float64 `json:"values,omitempty"`
	Median float64   `json:"median"`
	Error  string    `json:"error,omitempty"` // the first one
	Errors int       `json:"errors,omitempty"`
	Lost   float64   `json:"lost,omitempty"` // single attempts that failed in measurements that did not
}

func (c *cell) add(value float64, err error) {
	if err != nil {
		if c.Errors++; c.Error == "" {
			c.Error = err.Error()
		}
		return
	}
	c.Values = append(c.Values, value)
	c.Median = median(c.Values)
}

// fails is true when there is nothing to show.
func (c *cell) fails() bool { return c == nil || len(c.Values) == 0 }

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// line is a row of the table with its cells by column.
type line struct {
	Key   string           `json:"key"`
	Title string           `json:"title"`
	Unit  string           `json:"unit"`
	Lower bool             `json:"lowerIsBetter"`
	Cells map[string]*cell `json:"cells"`
}

func (l *line) cell(column string) *cell {
	if l.Cells[column] == nil {
		l.Cells[column] = &cell{}
	}
	return l.Cells[column]
}

// ratio is subject over other, of medians; 0 when there is none.
func (l *line) ratio(subject, other string) float64 {
	a, b := l.Cells[subject], l.Cells[other]
	if a.fails() || b.fails() || b.Median == 0 {
		return 0
	}
	return a.Median / b.Median
}

// section is a part of the table: the same rows for one kind of client.
type section struct {
	Key   string  `json:"key"`
	Title string  `json:"title"`
	Lines []*line `json:"rows"`
}

func (s *section) line(r row) *line {
	for _, l := range s.Lines {
		if l.Key == r.key {
			return l
		}
	}
	l := &line{Key: r.key, Title: r.title, Unit: r.unit, Lower: r.lower, Cells: map[string]*cell{}}
	s.Lines = append(s.Lines, l)
	return l
}

// column is a forwarder in the report.
type column struct {
	Name    string              `json:"name"`
	About   string              `json:"about"`
	Version string              `json:"version,omitempty"`
	SeenAs  map[string][]string `json:"seenAs,omitempty"` // by client: TCP, UDP
}

// report is all of a run.
type report struct {
	Title    string     `json:"title"`
	Machine  machine    `json:"machine"`
	Rounds   int        `json:"rounds"`
	Window   string     `json:"window"`
	Limit    int        `json:"openFiles"`
	Subject  string     `json:"subject"`
	Columns  []*column  `json:"columns"`
	Sections []*section `json:"sections"`
}
