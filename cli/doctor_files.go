package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/root"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// lookAtStateFolder looks at the folders as ADD would: the first that can be ours
// is it, and one that is not as it should be is an error.
func (d *doctor) lookAtStateFolder(context.Context) {
	const name = "state folder"
	var passed []string
	for _, dir := range d.app.dirs() {
		c, next := stateFolder(dir)
		c.Name = name
		if next {
			passed = append(passed, c.Seen)
			continue
		}
		d.note(c)
		return
	}
	d.note(check{Name: name, Status: fail, Seen: strings.Join(passed, "; ") + ": there is no place for one", Mend: "export XDG_RUNTIME_DIR=$(mktemp -d)"})
}

// stateFolder looks at one folder; next says that another one has its turn.
func stateFolder(dir string) (c check, next bool) {
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missingFolder(dir)
	case err != nil:
		return check{Seen: fmt.Sprintf("%s: %v", dir, err)}, true
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return check{Status: fail, Seen: dir + " is not a folder (a link is not followed)", Mend: "rm " + quoted(dir), AsRoot: int(st.Uid) != os.Geteuid()}, false
	case int(st.Uid) != os.Geteuid():
		// As OpenFirst: the turn is the next one's when we have no rights there.
		if filepath.Dir(dir) == "/tmp" {
			return check{Status: fail, Seen: fmt.Sprintf("%s belongs to uid %d and not to uid %d", dir, st.Uid, os.Geteuid()), Mend: "rm -r " + quoted(dir), AsRoot: true}, false
		}
		return check{Seen: fmt.Sprintf("%s belongs to uid %d", dir, st.Uid)}, true
	case unix.Access(dir, unix.W_OK|unix.X_OK) != nil:
		return check{Status: fail, Seen: dir + " cannot be written to", Mend: "chmod 0700 " + quoted(dir)}, false
	case st.Mode&0o077 != 0:
		return check{Status: warn, Seen: fmt.Sprintf("%s is open to others (mode %04o); the next ADD closes it", dir, st.Mode&0o7777), Mend: "chmod 0700 " + quoted(dir)}, false
	}
	return survives(dir, dir+" is there and ours"), false
}

func missingFolder(dir string) (c check, next bool) {
	parent := filepath.Dir(dir)
	if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
		return check{Seen: fmt.Sprintf("%s cannot be made: %s: %v", dir, parent, err)}, true
	}
	return survives(parent, dir+" will be made by the first ADD"), false
}

// survives warns of a folder that a reboot does not empty: records of containers
// that are long gone would come back.
func survives(dir, seen string) check {
	const tmpfsMagic, ramfsMagic = 0x01021994, 0x858458f6
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Type) == tmpfsMagic || int64(st.Type) == ramfsMagic {
		return check{Status: pass, Seen: seen}
	}
	return check{Status: pass, Seen: seen + "; it is not a tmpfs, so after a reboot GC takes away what is left in it"}
}

// conflistFolders are where runtimes read conflists: the system's, and the user's
// of Podman and nerdctl; and that of cnitool.
func conflistFolders() []string {
	folders := []string{root.ConflistDir}
	if home, err := os.UserConfigDir(); err == nil && os.Geteuid() != 0 {
		folders = append(folders, filepath.Join(home, "cni", "net.d"))
	}
	if dir := os.Getenv("NETCONFPATH"); dir != "" && !slices.Contains(folders, dir) {
		folders = append(folders, dir)
	}
	return folders
}

func (d *doctor) lookAtConflists(ctx context.Context) {
	const name = "conflists"
	seen := map[string]string{}
	count, before := 0, len(d.Checks)
	for _, folder := range conflistFolders() {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) { // then it is not for this user
			d.note(check{Name: name, Status: warn, Seen: fmt.Sprintf("%s cannot be read: %v", folder, err)})
		}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); e.IsDir() || (ext != ".conflist" && ext != ".conf" && ext != ".json") {
				continue
			}
			count++
			d.lookAtConflist(ctx, filepath.Join(folder, e.Name()), seen)
		}
	}
	if len(d.Checks) == before {
		d.pass(name, "%s in %s, none of them of ambi", counting(count, "conflist", "conflists"), strings.Join(conflistFolders(), ", "))
	}
}

// outOfTheWay has runtimes pass over a file.
func outOfTheWay(path string) string {
	return fmt.Sprintf("mv %s %s", quoted(path), quoted(path+".disabled"))
}

// lookAtConflist parses one file. seen are the networks of the files before it.
func (d *doctor) lookAtConflist(ctx context.Context, path string, seen map[string]string) {
	name := "conflist"
	raw, err := os.ReadFile(path)
	if err != nil {
		d.note(check{Name: name, Status: warn, Seen: err.Error(), Mend: "chmod a+r " + quoted(path), AsRoot: true})
		return
	}
	w := &wrapping{path: path}
	if err := json.Unmarshal(raw, w); err != nil {
		d.note(check{
			Name: name, Status: fail, Seen: fmt.Sprintf("%s: %s; correct it, or have runtimes pass over it", path, jsonError(raw, err)),
			Mend: outOfTheWay(path), AsRoot: !writable(path),
		})
		return
	}
	if len(w.Plugins) == 0 && w.Type != "" {
		w.Plugins = []json.RawMessage{raw}
	}
	if other := seen[w.Name]; other != "" {
		d.note(check{
			Name: name, Status: warn, Seen: fmt.Sprintf("%s: network %q is also in %s, and runtimes take the first", path, w.Name, other),
			Mend: outOfTheWay(path), AsRoot: !writable(path),
		})
	}
	seen[w.Name] = path
	for _, plugin := range w.Plugins {
		var of struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(plugin, &of) == nil && of.Type == "ambi" {
			d.lookAtEntry(ctx, w, plugin)
		}
	}
}

func writable(path string) bool { return unix.Access(filepath.Dir(path), unix.W_OK) == nil }

// lookAtEntry checks an entry of ambi: as a runtime does, by its verb STATUS, in a
// state folder of its own.
func (d *doctor) lookAtEntry(ctx context.Context, w *wrapping, plugin json.RawMessage) {
	c := check{Name: "conflist", Status: fail}
	entry := map[string]json.RawMessage{}
	_ = json.Unmarshal(plugin, &entry) // it has a type, so it is an object
	n, err := parsedEntry(w, entry)
	if err != nil {
		c.Seen, c.Mend, c.AsRoot = fmt.Sprintf("%s: %v", w.path, err), outOfTheWay(w.path), !writable(w.path)
		d.note(c)
		return
	}
	for _, delegate := range n.Delegates {
		if findPlugin(delegate.Type) == "" {
			c.Seen = fmt.Sprintf("%s: no plugin %q in %s", w.path, delegate.Type, cniPath())
			c.Mend = pluginMend(delegate.Type)
			c.AsRoot = !strings.HasPrefix(c.Mend, "export ")
			if c.Mend == "" {
				c.Mend, c.AsRoot = outOfTheWay(w.path), !writable(w.path)
				c.Seen += "; install it, or have runtimes pass over this network"
			}
			d.forMode(conf.ModeRoot, c)
			return
		}
	}
	if err := status(ctx, entry); err != nil {
		c.Seen = fmt.Sprintf("%s: network %q would not work: %v", w.path, w.Name, err)
		d.note(c)
		return
	}
	d.pass("conflist", "%s: network %q works", w.path, w.Name)
}

// parsedEntry is the entry with what runtimes add to it.
func parsedEntry(w *wrapping, entry map[string]json.RawMessage) (*conf.NetConf, error) {
	for key, value := range map[string]string{"name": w.Name, "cniVersion": w.CNIVersion} {
		if _, there := entry[key]; !there && value != "" {
			entry[key], _ = json.Marshal(value) // a text never fails
		}
	}
	raw, err := json.Marshal(entry)
	if err != nil {
		return nil, err
	}
	n, err := conf.Parse(raw)
	return n, cmp.Or(err, n.Misspelt())
}

func status(ctx context.Context, entry map[string]json.RawMessage) error {
	dir, err := os.MkdirTemp("", "ambi-doctor-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // in /tmp, and empty but for what was learnt
	config := map[string]any{}
	for key, value := range entry {
		config[key] = value
	}
	config["cniVersion"], config["stateDir"], config["logFile"] = "1.1.0", dir, ""
	return callVerb(ctx, "STATUS", config)
}

// lookAtDescriptors: a TCP connection through rootlessport takes two, and pipes
// when it is fast.
func (d *doctor) lookAtDescriptors(context.Context) {
	const name, good, least = "open files", 4096, 256
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		d.note(check{Name: name, Status: warn, Seen: fmt.Sprintf("the limit cannot be read: %v", err)})
		return
	}
	if limit.Max >= good {
		d.pass(name, "at most %d for each process", limit.Max)
		return
	}
	most := 1 << 20
	if n, there := readSysctl("fs.nr_open"); there {
		most = min(most, n)
	}
	c := check{
		Name: name, Status: warn, AsRoot: true,
		Seen: fmt.Sprintf("at most %d for each process (ulimit -Hn): a published connection takes two, a TCP port one, a UDP port one for each address family", limit.Max),
		Mend: fmt.Sprintf("prlimit --nofile=%d:%d --pid %d", most, most, os.Getppid()),
	}
	if limit.Max < least {
		c.Status = fail
	}
	d.forMode(conf.ModeRootless, c)
}

// lookAtLeftovers looks at every attachment, and for what has none.
func (d *doctor) lookAtLeftovers(ctx context.Context) {
	const name = "attachments"
	all, err := d.app.attachments(nil)
	if err != nil {
		d.note(check{Name: name, Status: warn, Seen: err.Error()})
		return
	}
	before := len(d.Checks)
	lookAll(ctx, all, (*attachment).look)
	for _, t := range all {
		for _, p := range t.problems {
			c := check{Name: name, Status: fail, Seen: t.String() + ": " + p.Text, Mend: p.Remedy}
			if p.Code == recordUnreadable || p.Code == unfinished || p.Code == namespaceGone {
				c.Status = warn // no container is without its network
			}
			d.note(c)
		}
	}
	d.lookForStrays(ctx, all)
	healthy := len(d.Checks) == before
	d.lookAtNames(all)
	if healthy {
		d.pass(name, "%s, and nothing is left of others", counting(len(all), "attachment", "attachments"))
	}
}

// lookAtNames tells of the name servers of networks as root. One that has ended is among the
// problems of each attachment.
func (d *doctor) lookAtNames(all []*attachment) {
	var networks []string
	for _, t := range all {
		if t.record == nil || slices.Contains(networks, t.record.Network) {
			continue
		}
		server := t.nameServer()
		if server == nil {
			continue
		}
		networks = append(networks, t.record.Network)
		d.pass("name server", "of network %s: process %d answers at %s, port 53", t.record.Network, server.PID, strings.Trim(fmt.Sprint(server.Addresses), "[]"))
	}
}

// lookForStrays looks for files, ports and processes that no record explains.
func (d *doctor) lookForStrays(ctx context.Context, all []*attachment) {
	const name = "leftovers"
	d.lookElsewhere()
	strays := straySupervisors()
	for _, stray := range strays {
		d.note(check{
			Name: name, Status: warn, Mend: "kill " + strconv.Itoa(stray.pid),
			Seen: fmt.Sprintf("process %d is a supervisor of %s, whose record is gone", stray.pid, stray.key),
		})
	}
	d.lookForFiles(all, strays)
	if d.mode == conf.ModeRoot && d.able {
		orphans, err := d.app.orphans(ctx)
		if err != nil {
			d.note(check{Name: name, Status: warn, Seen: err.Error()})
		}
		for backend, owners := range orphans {
			d.note(check{
				Name: name, Status: warn, Mend: d.app.command("gc --ports"),
				Seen: fmt.Sprintf("%s has published ports without a record in %s: of %s", backend, strings.Join(d.app.dirs(), ", "), owners),
			})
		}
	}
}

// lookForFiles looks for networks that have files and neither record nor process.
func (d *doctor) lookForFiles(all []*attachment, strays []supervisorProcess) {
	const name = "leftovers"
	networks, err := d.app.networks()
	if err != nil {
		d.note(check{Name: name, Status: warn, Seen: err.Error()})
	}
	for _, network := range networks {
		explained := slices.ContainsFunc(all, func(t *attachment) bool { return t.Network == network }) ||
			slices.ContainsFunc(strays, func(p supervisorProcess) bool { return strings.HasPrefix(p.key, network+"/") })
		if !explained {
			d.note(check{Name: name, Status: warn, Seen: fmt.Sprintf("network %s: files of a verb that was killed", network), Mend: d.app.command("gc " + quoted(network))})
		}
	}
}

type supervisorProcess struct {
	pid int
	key string
}

// straySupervisors are this user's supervisors of private networks without a record beside
// the hub's folder, in which their log is, their standard error. Of one whose log cannot be seen nothing is said.
func straySupervisors() []supervisorProcess {
	var strays []supervisorProcess
	for _, s := range supervisor.Processes() {
		if !(hub.Hub{Name: filepath.Base(s.Hub)}).Private() {
			continue
		}
		if _, err := os.Lstat(s.Hub + ".json"); errors.Is(err, fs.ErrNotExist) {
			key, _, _ := strings.Cut(s.Title, " ")
			strays = append(strays, supervisorProcess{s.PID, key})
		}
	}
	return strays
}

// lookElsewhere tells of networks in state folders that no command of this environment looks in.
func (d *doctor) lookElsewhere() {
	known := d.app.dirs()
	for _, s := range supervisor.Processes() {
		if dir := s.StateDir(); s.Trusted() && !slices.ContainsFunc(known, func(other string) bool { return sameFile(dir, other) }) {
			known = append(known, dir)
			d.pass("state folders", "network %s and perhaps others run by the folder %s, which was another key stateDir or XDG_RUNTIME_DIR at ADD: --state-dir %s", s.Network(), dir, quoted(dir))
		}
	}
}
