package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/lab"
)

// TestMain: machines run this program again, inside.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "inside" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSoak is a short run in every mode; "make soak" makes long ones.
func TestSoak(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make machines out of namespaces")
	}
	if testing.Short() {
		t.Skip("long")
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	_, err = os.Stat(root + "/bin/ambi")
	require.NoError(t, err, "run make build setup first")
	seed := uint64(time.Now().UnixNano())
	for mode := range networks {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			j := job{Mode: mode, Time: 8 * time.Second, Least: 10, Seed: seed, Callers: 2, Machine: lab.Machine{Checkout: root, Bin: root + "/bin", Tools: root + "/.tools/bin"}}
			o, err := j.run()
			require.NoError(t, err)
			require.Empty(t, o.Problems, "seed %d", seed)
			require.NotZero(t, o.Calls["ADD"]-o.Failed["ADD"], "ADDs that succeeded")
			require.NotEmpty(t, o.Samples)
			t.Log(o.table())
			requireXML(t, draw([]*outcome{o}))
		})
	}
}

func requireXML(t *testing.T, picture string) {
	d := xml.NewDecoder(strings.NewReader(picture))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}

// TestDamaged: a configuration of any length can be damaged.
func TestDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, config := range []string{"", "x", "{}"} {
		for range 100 {
			require.LessOrEqual(t, len(damaged(r, config)), len(config))
		}
	}
}

// TestSeedDecides: the same seed makes the same choices.
func TestSeedDecides(t *testing.T) {
	choices := func(seed uint64) (all []string) {
		r := rand.New(rand.NewPCG(seed, 0))
		for _, n := range slices.Concat(networks["root"], networks["rootless"], networks["shared"]) {
			config := n.configuration(n.runtimeConfig(r), "")
			all = append(all, config, damaged(r, config))
		}
		return all
	}
	require.Equal(t, choices(7), choices(7))
	require.NotEqual(t, choices(7), choices(8))
}

// TestDraw: a picture of nothing is a picture, too.
func TestDraw(t *testing.T) {
	requireXML(t, draw([]*outcome{{Mode: "root"}, {Mode: "rootless", Samples: []sample{{At: 1, Open: 7}}, Timings: []timing{{"ADD", true, 1, 0.02}}}}))
}
