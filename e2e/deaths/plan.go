package deaths

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Plan is what is killed, and what clients do meanwhile.
type Plan struct {
	Seed  uint64
	Kills int
	Pause time.Duration // the longest one between two
	// Hub is the control socket of a hub whose processes are killed, and Pair the file in
	// which a name server of root's and its twin are; either may be empty.
	Hub, Pair string

	Rate      int   // connections, and questions, a second on each way
	Connect   []Way // to a server that says something at once: each connect succeeds or waits
	Streams   []Way // to one that says all back
	Questions []Question
	// Commands are run one after the other, in place of kills, and nothing may end by them.
	Commands [][]string
	// Alone has each process killed once more by itself and not in pairs.
	Alone bool
}

// Way is how clients come to a server.
type Way struct {
	Netns string // of the client
	Addr  string
	By    []string // who carries it: with one of them what is under way may end, and with nobody else
}

// Question is a name that is asked for.
type Question struct{ Netns, Server, Name string }

// ParseWay reads "NETNS,ADDR" or "NETNS,ADDR,VICTIM+VICTIM".
func ParseWay(text string) (Way, error) {
	parts := strings.Split(text, ",")
	if len(parts) < 2 || len(parts) > 3 {
		return Way{}, fmt.Errorf("%q is not NETNS,ADDR,VICTIMS", text)
	}
	w := Way{Netns: parts[0], Addr: parts[1]}
	if len(parts) == 3 {
		w.By = strings.Split(parts[2], "+")
	}
	return w, nil
}

// kill is one blow.
type kill struct {
	victims []string
	at      time.Time
}

// blows are the groups that may be killed at once: of two that start each other again never
// both.
func (p *Plan) blows(there map[string]int) (blows [][]string) {
	var names []string
	for name := range there {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, one := range names {
		blows = append(blows, []string{one})
		for _, other := range names[i+1:] {
			if !p.Alone && !twins(one, other) {
				blows = append(blows, []string{one, other})
			}
		}
	}
	return blows
}

func twins(one, other string) bool {
	pair := []string{one, other}
	return slices.Contains(pair, Supervisor) && slices.Contains(pair, Keeper) || slices.Contains(pair, Server) && slices.Contains(pair, Twin)
}

func (p *Plan) random() *rand.Rand { return rand.New(rand.NewPCG(p.Seed, p.Seed)) }
