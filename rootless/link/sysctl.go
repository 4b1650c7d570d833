package link

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// readSysctls are all that can be read and set. What cannot be read is not there.
func (p *Place) readSysctls() map[string]string {
	values := map[string]string{}
	for name, folder := range p.folders {
		readFolder(int(folder.Fd()), ".", name, values)
	}
	return values
}

func readFolder(at int, name, path string, values map[string]string) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	entries, _ := dir.ReadDir(-1)
	b := make([]byte, most4k)
	for _, e := range entries {
		below := path + "/" + e.Name()
		if e.IsDir() {
			readFolder(fd, e.Name(), below, values)
			continue
		}
		if value, ok := readFile(fd, e.Name(), b); ok {
			values[below] = value
		}
	}
}

const most4k = 4096

// readFile reads a sysctl that can be set, too: the others are figures.
func readFile(at int, name string, b []byte) (string, bool) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil || stat.Mode&0o200 == 0 {
		return "", false
	}
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", false
	}
	return strings.TrimSpace(string(b[:n])), true
}

// perLink are the folders of sysctls that have one for each interface, and one for what a
// new interface begins with.
var perLink = []string{"ipv4/conf/", "ipv4/neigh/", "ipv6/conf/", "ipv6/neigh/"}

// linkOf splits the name of an interface's sysctl: ipv4/conf/, eth0, rp_filter.
func linkOf(name string) (folder, link, rest string, ok bool) {
	i := slices.IndexFunc(perLink, func(f string) bool { return strings.HasPrefix(name, f) })
	if i < 0 {
		return "", "", "", false
	}
	link, rest, ok = strings.Cut(name[len(perLink[i]):], "/")
	return perLink[i], link, rest, ok
}

// ofLink says whether a sysctl is one of a link that is carried.
func (c *Carried) ofLink(name string) bool {
	_, link, _, ok := linkOf(name)
	return ok && slices.ContainsFunc(c.Links, func(l Link) bool { return l.Name == link })
}

// changed are the sysctls that are not as in a fresh namespace, a link's not as a fresh
// link's there; by the names that the links get.
func changed(fresh, now map[string]string, renamed map[string]string) map[string]string {
	values := map[string]string{}
	for name, value := range now {
		before, known := fresh[name]
		folder, link, rest, ok := linkOf(name)
		if to, carried := renamed[link]; ok && carried {
			before, known = fresh[folder+"default/"+rest]
			name = folder + to + "/" + rest
		}
		if known && before != value && rest != "mtu" { // of IPv6: it follows the link's
			values[name] = value
		}
	}
	return values
}
