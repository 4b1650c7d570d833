package conf

import (
	"maps"
	"slices"
	"strings"
)

// nearest is the one of our keys that key is a misspelling of, by the case of its
// letters or by one or two slips; empty when there is none.
func nearest(key string, ours fields) string {
	best, least := "", 3
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		most := slipsIn(name)
		if len(key) > len(name)+most {
			continue // and may be very long
		}
		slips := distance(strings.ToLower(key), strings.ToLower(name))
		if slips <= most && slips < least {
			best, least = name, slips
		}
	}
	return best
}

// slipsIn is how many slips make a misspelling of a name. In a short one more than
// one makes another word: "dns" and "ips", "mode" and "code".
func slipsIn(name string) int {
	const short = 5
	if len(name) <= short {
		return 1
	}
	return 2
}

// distance counts the letters that are missing, too many, wrong, or two in each
// other's place (optimal string alignment), in bytes.
func distance(a, b string) int {
	var before []int
	last := make([]int, len(b)+1) // the row of a without its last letter
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			wrong := last[j]
			if a[i] != b[j] {
				wrong++
			}
			row[j+1] = min(wrong, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
