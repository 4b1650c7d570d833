package netns

import "slices"

// portRange is a run of ports, both ends in it. The zero value is none.
type portRange struct{ first, last uint16 }

// portRanges is a set of ports as sorted runs that do not touch.
type portRanges struct{ runs []portRange }

// add puts a port in and says which run came into being and which went; the zero
// run when the port was there.
func (s *portRanges) add(port uint16) (added portRange, gone []portRange) {
	i, found := s.find(port)
	if found {
		return portRange{}, nil
	}
	added = portRange{port, port}
	from, to := i, i
	if i > 0 && s.runs[i-1].last+1 == port {
		from--
		added.first = s.runs[from].first
	}
	if i < len(s.runs) && s.runs[i].first-1 == port {
		added.last = s.runs[i].last
		to++
	}
	gone = slices.Clone(s.runs[from:to])
	s.runs = slices.Replace(s.runs, from, to, added)
	return added, gone
}

// remove takes a port out and says which runs came into being and which went.
func (s *portRanges) remove(port uint16) (added []portRange, gone portRange) {
	i, found := s.find(port)
	if !found {
		return nil, portRange{}
	}
	gone = s.runs[i]
	if gone.first < port {
		added = append(added, portRange{gone.first, port - 1})
	}
	if port < gone.last {
		added = append(added, portRange{port + 1, gone.last})
	}
	s.runs = slices.Replace(s.runs, i, i+1, added...)
	return added, gone
}

// find is the run that holds the port, or where one of it alone would stand.
func (s *portRanges) find(port uint16) (int, bool) {
	return slices.BinarySearchFunc(s.runs, port, func(r portRange, port uint16) int {
		switch {
		case r.last < port:
			return -1
		case r.first > port:
			return 1
		}
		return 0
	})
}
