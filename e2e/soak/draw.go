package main

import "github.com/ambi-cni/ambi/e2e/chart"

// draw is the picture of the runs: a column for each mode, and in it the time of the
// verbs, memory and descriptors over the run.
func draw(runs []*outcome) string {
	p := chart.Picture{Title: "ambi under careless use"}
	for _, o := range runs {
		p.Columns = append(p.Columns, chart.Column{Title: "as " + o.Mode, Panels: o.panels()})
	}
	return p.SVG()
}

// panels are the three pictures of a run.
func (o *outcome) panels() []chart.Panel {
	times := chart.Lines{Title: "time of a verb, median of a fortieth of the run", Unit: "ms"}
	memory := chart.Lines{Title: "memory, resident", Unit: "MB"}
	for _, verb := range verbs {
		times.Lines = append(times.Lines, chart.Line{Name: verb, Points: o.overTime(verb)})
	}
	open := chart.Lines{Title: "descriptors, and numbers of things", Unit: ""}
	series := func(of func(sample) float64) (points [][2]float64) {
		for _, s := range o.Samples {
			if v := of(s); v > 0 {
				points = append(points, [2]float64{s.At, v})
			}
		}
		return points
	}
	memory.Lines = append(memory.Lines, chart.Line{Name: "verbs at work, median", Points: series(func(s sample) float64 { return s.Verbs / 1e6 })})
	if o.Mode != "root" {
		memory.Lines = append(memory.Lines,
			chart.Line{Name: "oldest supervisor", Points: series(func(s sample) float64 { return s.Resident / 1e6 })},
			chart.Line{Name: "all supervisors, median", Points: series(func(s sample) float64 { return s.Median / 1e6 })})
		open.Lines = append(open.Lines,
			chart.Line{Name: "of the oldest supervisor", Points: series(func(s sample) float64 { return float64(s.Descriptors) })},
			chart.Line{Name: "supervisors", Points: series(func(s sample) float64 { return float64(s.Supervisors) })})
	}
	open.Lines = append(open.Lines,
		chart.Line{Name: "of all processes", Points: series(func(s sample) float64 { return float64(s.Open) })},
		chart.Line{Name: "files of state", Points: series(func(s sample) float64 { return float64(s.Files) })})
	return []chart.Panel{times, memory, open}
}

// lasted is when the last verb ended, in seconds.
func (o *outcome) lasted() (end float64) {
	for _, t := range o.Timings {
		end = max(end, t.At)
	}
	return end
}

// overTime are the medians of a verb's successful calls, in milliseconds, in forty
// parts of the run.
func (o *outcome) overTime(verb string) (points [][2]float64) {
	const parts = 40
	end := o.lasted()
	var in [parts][]float64
	for _, t := range o.Timings {
		if t.Verb == verb && t.OK && end > 0 {
			i := min(parts-1, int(t.At/end*parts))
			in[i] = append(in[i], 1000*t.Took)
		}
	}
	for i, values := range in {
		if len(values) > 0 {
			points = append(points, [2]float64{(float64(i) + 0.5) / parts * end, median(values)})
		}
	}
	return points
}
