//go:build race

package forward_test

// raceEnabled makes large tests smaller: the detector slows the endpoints down.
const raceEnabled = true
