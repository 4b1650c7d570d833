// Package install puts ambi on a node and takes it away again: its binary where
// runtimes look for plugins, and a conflist, of its own or another plugin's with ambi
// added to it, where they look for networks.
//
// At any moment, also when it is killed, the disk is full, or others write there too,
// the node has the old or the new binary and the old or the new conflist, each whole: a
// file is written under a name that no runtime reads, synced, and renamed within
// its folder. The binary comes first, since a conflist without it makes every
// container fail. What is as it shall be is not touched, so that nobody who watches the
// folder is woken. What it made it marks, and takes away nothing else.
//
// It imports flock and conf. Start at [Node].
package install
