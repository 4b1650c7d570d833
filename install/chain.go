package install

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
)

// Chain has ambi publish the ports in the conflist that runtimes use: the first of the
// folder that is one. Where that has ambi already, nothing is changed.
//
// Its owner may replace it meanwhile, and wins: the new one is edited then.
func (n Node) Chain(ctx context.Context) error {
	d, err := n.openConf(ctx)
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
	switch {
	case l.isMarked():
		return false, conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "folder %s: %s, which runtimes take first, is ambi's own network, and not one to add ambi to", d.Name(), file), "take it away by \"ambi uninstall\", then call it again")
	case l.has(name):
		return true, nil
	}
	swapped, err := d.swap(file, text, l.withAmbi(), looks)
	if swapped {
		n.Tell("added ambi to %s", d.path(file))
		n.tellFirst(d, file)
	}
	return swapped, err
}

// used is the conflist that runtimes use. One that cannot be edited is an error, and not
// passed over: the next one is another network.
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
		switch {
		case err == nil:
			return file, text, l, looks, nil
		case errors.Is(err, fs.ErrNotExist):
			continue // it went meanwhile
		}
		return "", nil, nil, look{}, conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "folder %s: the conflist that runtimes take first cannot be added to: %s", d.Name(), conf.Message(err)), "have its owner write it anew, or take it away; --watch goes on then")
	}
	return "", nil, nil, look{}, conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "folder %s: no conflist to add ambi to: %s", d.Name(), why), "install the node's network first, or use --watch, which waits for it")
}

// readWhole reads a conflist, and once more for a while when it is none, or gone: its owner
// may be writing it in place.
func readWhole(path string) (text []byte, l *list, looks look, err error) {
	const pause, most = 50 * time.Millisecond, 10
	for try := 1; ; try++ {
		if text, looks, err = readFile(path); err == nil {
			l, err = parseList(filepath.Base(path), text)
		}
		if err == nil || try == most {
			return text, l, looks, err
		}
		time.Sleep(pause)
	}
}
