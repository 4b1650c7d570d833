package scripted

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"
)

// folder has the plugin's state: a file for each attachment, one for each address.
const folder = "/run/scripted"

// attachment is what the plugin remembers. All that DEL has to remove has a name that
// is made of the key, so that a lost file is no matter.
type attachment struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Plugin      string `json:"plugin"` // the name it was called by: a chain may have several
	Ports       bool   `json:"ports"`
	Helper      int    `json:"helper"` // pid
	MAC         string `json:"mac"`
	Stdin       []byte `json:"stdin"` // of ADD
}

// hash is short enough for the name of a link.
func (a *attachment) hash() string {
	sum := sha256.Sum256([]byte(a.Network + "\x00" + a.ContainerID + "\x00" + a.IfName + "\x00" + a.Plugin))
	return hex.EncodeToString(sum[:5])
}

func (a *attachment) hostLink() string { return "sc" + a.hash() }
func (a *attachment) table() string    { return "scripted_" + a.hash() }
func (a *attachment) file() string     { return filepath.Join(folder, a.hash()+".json") }

func (a *attachment) save() error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	temporary := a.file() + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, a.file())
}

// load reads what is remembered; known is false when nothing is, or it is damaged.
func (a *attachment) load() (known bool) {
	text, err := os.ReadFile(a.file())
	var old attachment
	if err != nil || json.Unmarshal(text, &old) != nil {
		return false
	}
	*a = old
	return true
}

func (a *attachment) exists() bool {
	_, err := os.Stat(a.file())
	return err == nil
}

// lock has the plugin alone at work: as the one that is called, or as the IPAM plugin,
// which is called meanwhile.
func (p *plugin) lock() (unlock func(), err error) {
	if err := os.MkdirAll(folder+"/addresses", 0o755); err != nil {
		return nil, err
	}
	path := folder
	if p.isIPAM() {
		path = folder + "/addresses"
	}
	f, err := os.Open(path)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return func() { f.Close() }, nil
}

// allocate reserves an address: a file whose name has the owner.
func (p *plugin) allocate(a *attachment) (netip.Prefix, error) {
	addr, asked := p.wanted(), true
	if !addr.IsValid() {
		addr, asked = netip.MustParseAddr("10.77.0.2"), false
	}
	for ; ; addr = addr.Next() {
		taken, err := filepath.Glob(filepath.Join(folder, "addresses", a.Network+"@"+addr.String()+"@*"))
		if err != nil {
			return netip.Prefix{}, err
		}
		if len(taken) == 0 || p.broken("same-address") {
			name := a.Network + "@" + addr.String() + "@" + a.hash()
			return netip.PrefixFrom(addr, 16), os.WriteFile(filepath.Join(folder, "addresses", name), nil, 0o600)
		}
		if asked {
			return netip.Prefix{}, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("the address %s is taken", addr), "")
		}
	}
}

func (a *attachment) release() error {
	files, err := filepath.Glob(filepath.Join(folder, "addresses", "*@"+a.hash()))
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// all are the attachments of a network, or with an empty name of all.
func all(network string) ([]*attachment, error) {
	files, err := filepath.Glob(folder + "/*.json")
	if err != nil {
		return nil, err
	}
	var found []*attachment
	for _, file := range files {
		text, err := os.ReadFile(file)
		var a attachment
		if errors.Is(err, fs.ErrNotExist) || json.Unmarshal(text, &a) != nil {
			continue
		}
		if network == "" || a.Network == network {
			found = append(found, &a)
		}
	}
	return found, nil
}

// helpers are the processes of an attachment, found by the name that they were given.
func (a *attachment) helpers() []int {
	var found []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		args, _ := os.ReadFile(dir + "/cmdline")
		if strings.HasPrefix(string(args), a.table()+"\x00") {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(dir), &pid); err == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}
