package install

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// ErrNoConflist says that the node has no conflist yet that ambi could be added to.
var ErrNoConflist = errors.New("the node has no conflist yet")

// Chain has ambi publish the ports in the conflist that runtimes use: the first of the
// folder that is one. Where that has ambi already, nothing is changed.
//
// Its owner may replace it meanwhile, and wins: the new one is edited then.
func (n Node) Chain(ctx context.Context) error {
	d, err := n.open(ctx, n.ConfDir)
	if err != nil {
		return err
	}
	defer d.Close()
	for range mostTries {
		done, err := n.chainOnce(d)
		if done || err != nil {
			return err
		}
	}
	return busyFile(d.path("*.conflist"))
}

// chainOnce is one try. It is not done when the file was another one in the end.
func (n Node) chainOnce(d folder) (done bool, err error) {
	file, text, l, looks, err := n.used(d)
	if err != nil {
		return false, err
	}
	if l.has(name) {
		return true, nil
	}
	swapped, err := d.swap(file, text, l.withAmbi(), looks)
	if swapped {
		n.Tell("added ambi to %s", d.path(file))
	}
	return swapped, err
}

// used is the conflist that runtimes use. The error of one that is being written, and of
// none, wraps ErrNoConflist.
func (n Node) used(d folder) (file string, text []byte, l *list, looks look, err error) {
	files, err := confFiles(d.Name())
	if err != nil {
		return "", nil, nil, look{}, err
	}
	why := "it has no file that ends in .conflist"
	for _, file := range files {
		if filepath.Ext(file) != ".conflist" {
			why = file + " is a configuration of one plugin, and ambi has to be added to a list of plugins"
			continue
		}
		text, l, looks, err := readWhole(d.path(file))
		if err == nil {
			return file, text, l, looks, nil
		}
		why = conf.Message(err)
	}
	return "", nil, nil, look{}, noConflist{conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "folder %s: no conflist to add ambi to: %s", d.Name(), why), "install the node's network first, or use --watch, which waits for it")}
}

// readWhole reads a conflist, and once more for a while when it is none: its owner may be
// writing it in place.
func readWhole(path string) (text []byte, l *list, looks look, err error) {
	const pause, most = 50 * time.Millisecond, 10
	for try := 1; ; try++ {
		if text, looks, err = readFile(path); err != nil {
			return nil, nil, look{}, ioError(err, "reading %s", path)
		}
		if l, err = parseList(filepath.Base(path), text); err == nil || try == most {
			return text, l, looks, err
		}
		time.Sleep(pause)
	}
}

// noConflist is an error that is ErrNoConflist, too, without saying so.
type noConflist struct{ because *types.Error }

func (e noConflist) Error() string   { return e.because.Error() }
func (e noConflist) Unwrap() []error { return []error{e.because, ErrNoConflist} }
