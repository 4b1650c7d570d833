package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/conformance/scripted"
	"github.com/ambi-cni/ambi/e2e/conformance/suite"
)

func TestMain(m *testing.M) {
	suite.Main()
	// Points wait for the kernel most of the time. A -parallel of the command line
	// still has precedence.
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
}

// tryAll runs the points of a set-up.
func tryAll(t *testing.T, o suite.Options) map[int]suite.Result {
	results, err := suite.Run(context.Background(), o)
	require.NoError(t, err)
	byNumber := map[int]suite.Result{}
	for _, r := range results {
		byNumber[r.Number] = r
	}
	return byNumber
}

func describe(r suite.Result) string {
	return fmt.Sprintf("%s%d %s (%s): %s %s", r.Letter, r.Number, r.Sentence, r.Basis, r.Why, strings.Join(r.Seen, "; "))
}

// TestAmbi holds ambi to every point in each of its set-ups.
func TestAmbi(t *testing.T) {
	needRoot(t)
	t.Parallel()
	if testing.Short() {
		t.Skip("most of a minute")
	}
	for _, need := range []string{"../../bin/ambi", "../../.tools/bin/bridge"} {
		_, err := os.Stat(need)
		require.NoError(t, err, "run make build setup first")
	}
	for name, o := range map[string]suite.Options{
		"built-in": {Conf: "networks/ambi.json"},
		"root":     {Conf: "networks/ambi.json", DelegateKey: "delegates", ListKey: "delegates", DelegateTimeout: `"delegateTimeout":"5s"`},
		"user":     {Conf: "networks/ambi.json", Rootless: true, Needs: []string{"slirp4netns", "/dev/net/tun"}},
		"chained":  {Conf: "networks/ambi-chained.conflist"},
	} {
		o.Plugin, o.Path, o.Parallel = "../../bin/ambi", []string{"../../.tools/bin"}, 5
		o.Attachments = 24 // of which ten at a time; "make conformance" has 50
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, r := range tryAll(t, o) {
				if r.Status == suite.Failed {
					t.Error(describe(r))
				}
			}
		})
	}
}

// broken is a plugin that does one thing wrong, and the points that have to notice.
type broken struct {
	fault   string
	caught  []int
	all     []int // the points that are tried; nil: the caught ones
	chained bool
	own     bool // it has no IPAM plugin, but addresses of its own
}

// span are the points of a letter, without those that take long: the plugin that does
// everything right is tried with them.
func span(first, last int) (numbers []int) {
	for n := first; n <= last; n++ {
		if !slices.Contains([]int{17, 46, 47, 71}, n) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// faults have at least one for each letter that is tried with all points of it: the
// right ones notice, and only they.
var faults = []broken{
	{fault: "unknown-verb", caught: []int{1, 14, 15, 16}, all: span(1, 20)},
	{fault: "silent-env", caught: []int{3, 4, 5}},
	{fault: "current-folder", caught: []int{13}},
	{fault: "last-folder", caught: []int{12}},
	{fault: "exit-zero", caught: []int{1, 3, 14}},
	{fault: "chatty", caught: []int{15, 68}},
	{fault: "panic", caught: []int{17}},
	{fault: "own-namespace", caught: []int{19}},

	{fault: "odd-codes", caught: []int{21, 22, 23}, all: span(21, 30)},
	{fault: "strict-args", caught: []int{26, 29, 30}},
	{fault: "env-first", caught: []int{27}, own: true},
	{fault: "float64", caught: []int{28}},
	{fault: "short-read", caught: []int{29}},

	{fault: "takes-over", caught: []int{32}},
	{fault: "wrong-version", caught: []int{33, 41}, all: span(31, 53)},
	{fault: "other-sandbox", caught: []int{18, 34}},
	{fault: "hides-host-link", caught: []int{34}},
	{fault: "drops-prev", caught: []int{37}},
	{fault: "drops-prev", caught: []int{37, 38, 42}, chained: true},
	{fault: "no-rollback", caught: []int{43}},
	{fault: "forgets-first", caught: []int{44}},
	{fault: "same-address", caught: []int{46}, own: true},
	{fault: "always-nft", caught: []int{48}},
	{fault: "any-port", caught: []int{49, 50}},
	{fault: "any-host-ip", caught: []int{51}},
	{fault: "steals-port", caught: []int{52}},

	{fault: "leaks-address", caught: []int{54, 57, 58, 60, 61, 64}, own: true},
	{fault: "del-once", caught: []int{55, 56}},
	{fault: "needs-netns", caught: []int{57, 58}},
	{fault: "trusts-path", caught: []int{59}},
	{fault: "trusts-stdin", caught: []int{64, 69}, all: span(54, 71), own: true},
	{fault: "trusts-pid", caught: []int{70}},
	{fault: "talks", caught: []int{68, 82, 93, 96}},

	{fault: "checks-nothing", caught: []int{73, 74, 75, 76, 78, 79, 81, 83}, all: span(72, 83)},
	{fault: "check-repairs", caught: []int{82}},
	{fault: "own-mac", caught: []int{77}},
	{fault: "only-own-routes", caught: []int{76}},

	{fault: "gc-nothing", caught: []int{85, 86, 87, 90, 91}, all: span(84, 95)},
	{fault: "gc-without-list", caught: []int{87}},
	{fault: "gc-any-network", caught: []int{88}},
	{fault: "gc-by-id", caught: []int{86}},
	{fault: "new-key-only", caught: []int{85}},
	{fault: "gc-alone", caught: []int{91}},

	{fault: "always-ready", caught: []int{97, 98, 99}, all: span(96, 108)},
	{fault: "constant-version", caught: []int{101}},
	{fault: "quiet-delegate", caught: []int{102}},
	{fault: "bare-env", caught: []int{103}},
	{fault: "trusts-output", caught: []int{105}},
}

// TestScripted shows that the suite passes a plugin that does everything right, and
// catches one that does one thing wrong, by the points that are about it.
func TestScripted(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("half a minute")
	}
	t.Parallel()
	t.Run("right", func(t *testing.T) {
		t.Parallel()
		for _, r := range tryAll(t, scriptedOptions(t, broken{})) {
			if r.Status == suite.Failed {
				t.Error(describe(r))
			}
		}
	})
	for _, b := range faults {
		t.Run(b.fault, func(t *testing.T) {
			t.Parallel()
			if b.all == nil {
				b.all = b.caught
			}
			results := tryAll(t, scriptedOptions(t, b))
			for _, n := range b.caught {
				if results[n].Status != suite.Failed {
					t.Errorf("not caught by %s", describe(results[n]))
				}
				require.NotContains(t, results[n].Why, "trouble of the suite")
				delete(results, n)
			}
			for _, r := range results {
				if r.Status == suite.Failed {
					t.Errorf("caught as well by %s", describe(r))
				}
			}
		})
	}
}

// scriptedOptions are those of the scripted plugin with a fault, which its name tells
// it.
func scriptedOptions(t *testing.T, b broken) suite.Options {
	name := scripted.Name + "+" + b.fault
	plugin := filepath.Join(t.TempDir(), name)
	self, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(self, plugin))
	entry := map[string]any{
		"type": name, "capabilities": map[string]bool{"portMappings": true},
		"script": scripted.Script{Helper: true, Chained: b.chained},
	}
	conf := entry
	if b.chained {
		conf = map[string]any{"plugins": []any{map[string]any{"type": "delegate"}, entry}}
	} else if !b.own {
		entry["ipam"] = map[string]any{"type": "delegate"}
	}
	conf["cniVersion"], conf["name"] = "1.1.0", "conf"
	text, err := json.Marshal(conf)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "conf.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	o := suite.Options{Plugin: plugin, Conf: file, Path: []string{filepath.Dir(plugin)}, Attachments: 12, Parallel: 3, Needs: []string{"nft"}}
	for _, n := range b.all {
		o.Only = append(o.Only, fmt.Sprint(n))
	}
	return o
}
