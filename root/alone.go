package root

import (
	"path/filepath"
	"slices"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// aloneOnly drops the error of a built-in chain that the entry may not need: a
// runtime that is told for ever that there is no plugin bridge does not start any
// container, while ADD behind another plugin works. When ADD does need it, it has
// the same error.
func (n *Network) aloneOnly(c *conf.NetConf, err error) error {
	if err == nil || !c.BuiltIn() || n.standsAlone(c) {
		return err
	}
	n.Log.Info("the built-in chain does not work, which is of no matter behind another plugin", "network", c.Name, "error", err)
	return nil
}

// standsAlone says whether an entry without delegates is for sure the one that makes
// the interface, and not one behind another plugin of its conflist. The key bridge
// says so, else the conflist of this name, else what the records of the network have.
func (n *Network) standsAlone(c *conf.NetConf) bool {
	if c.Bridge != (conf.Bridge{}) {
		return true
	}
	for _, dir := range n.ConflistDirs {
		if !filepath.IsAbs(dir) {
			continue // not set; the current folder is nobody's
		}
		l, err := conflistNamed(dir, c.Name)
		if err != nil {
			continue
		}
		for i, raw := range l.Plugins {
			if d, err := conf.ParseDelegate("", raw); err == nil && d.Type == c.Type {
				return i == 0
			}
		}
	}
	return n.recordedAlone(c.Name)
}

func (n *Network) recordedAlone(network string) bool {
	for _, dir := range n.StateDirs {
		store, err := record.OpenExisting(dir)
		if err != nil {
			continue
		}
		records, _, _ := store.List()
		if slices.ContainsFunc(records, func(r *record.Record) bool { return r.Network == network && len(r.Delegates) > 0 }) {
			return true
		}
	}
	return false
}
