package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ambi-cni/ambi/e2e/deaths"
)

// killAll is the command deaths.
func killAll(args []string) error {
	var p deaths.Plan
	f := flag.NewFlagSet("deaths", flag.ContinueOnError)
	f.Uint64Var(&p.Seed, "seed", uint64(time.Now().UnixNano()), "of what is random")
	f.IntVar(&p.Kills, "kills", 10, "how many")
	f.DurationVar(&p.Pause, "pause", 200*time.Millisecond, "the longest one between two")
	f.IntVar(&p.Rate, "rate", 20, "connections and questions a second on each way")
	f.StringVar(&p.Hub, "hub", "", "control socket")
	f.StringVar(&p.Pair, "pair", "", "file with a name server and its twin")
	f.BoolVar(&p.Alone, "alone", false, "not two at once")
	ways := func(name, usage string, to *[]deaths.Way) {
		f.Func(name, usage, func(text string) error {
			w, err := deaths.ParseWay(text)
			*to = append(*to, w)
			return err
		})
	}
	ways("connect", "NETNS,ADDR,VICTIM+VICTIM that carry it", &p.Connect)
	ways("stream", "NETNS,ADDR,VICTIM+VICTIM that carry it", &p.Streams)
	f.Func("name", "NETNS,SERVER,NAME", func(text string) error {
		parts := strings.Split(text, ",")
		if len(parts) != 3 {
			return fmt.Errorf("%q is not NETNS,SERVER,NAME", text)
		}
		p.Questions = append(p.Questions, deaths.Question{Netns: parts[0], Server: parts[1], Name: parts[2]})
		return nil
	})
	f.Func("run", "a command, in place of a kill", func(text string) error {
		p.Commands = append(p.Commands, strings.Fields(text))
		return nil
	})
	streams := f.Int("streams", 1, "on each way of -stream")
	within := f.Duration("within", 0, "the longest time that it may take until all is back")
	if err := f.Parse(args); err != nil {
		return err
	}
	p.Streams = slices.Repeat(p.Streams, *streams)
	fmt.Println("seed", p.Seed)
	report, err := deaths.Run(p)
	if report != nil {
		fmt.Print(report)
		for who, times := range report.Back {
			if *within > 0 && deaths.Worst(times) > *within {
				fmt.Fprintf(os.Stderr, "%s killed: it took %v until all was back\n", who, deaths.Worst(times))
				defer os.Exit(1)
			}
		}
	}
	return err
}
