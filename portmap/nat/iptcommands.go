package nat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/ambi-cni/ambi/conf"
)

// commands are the lines of one iptables-restore, by table.
type commands map[string][]string

func (c commands) add(table, format string, args ...any) {
	c[table] = append(c[table], fmt.Sprintf(format, args...))
}

// missingBase makes what is missing of the chains that all owners share.
func (r ruleset) missingBase(c commands) {
	for _, b := range bases(r.family) {
		if !r.chains[b.chain] {
			// Not as ":chain", which would flush a chain that somebody else makes
			// meanwhile: -N fails then, and so does the whole table.
			c.add(b.table, "-N %s", b.chain)
		}
		for _, h := range b.hooks {
			if r.jumps[h.chain+" "+b.chain] == 0 {
				c.add(b.table, "%s %s", h.command, h.rule(b.chain))
			}
		}
		if b.chain == guardChain && r.guards == 0 {
			for _, rule := range b.rules {
				c.add(b.table, "-A %s %s", b.chain, rule)
			}
		}
	}
}

// publication makes the chains of an owner, replacing what is there of them.
func (r ruleset) publication(in intent) commands {
	c := commands{}
	fs := r.own(in)
	if len(fs) == 0 {
		return c
	}
	r.missingBase(c)
	r.publishOwner(c, in)
	return c
}

func (r ruleset) publishOwner(c commands, in intent) {
	t := tag(in.Owner)
	c.add("nat", ":%s%s - [0:0]", dnatPrefix, t)
	c.add("nat", ":%s%s - [0:0]", masqPrefix, t)
	for _, f := range r.own(in) {
		c.add("nat", "-A %s%s %s", dnatPrefix, t, f.rule())
	}
	for _, pair := range r.masquerades(in) {
		source, destination, _ := strings.Cut(pair, " ")
		c.add("nat", "-A %s%s -s %s -d %s -j MASQUERADE", masqPrefix, t, source, destination)
	}
	if r.jumps[dnatChain+" "+dnatPrefix+t] == 0 {
		c.add("nat", "-A %s -m comment --comment %q -j %s%s", dnatChain, in.Owner.String(), dnatPrefix, t)
	}
	if r.jumps[masqChain+" "+masqPrefix+t] == 0 {
		c.add("nat", "-A %s -j %s%s", masqChain, masqPrefix, t)
	}
}

func (f forward) rule() string {
	host := ""
	if !f.wide() {
		host = "-d " + f.host.String() + " "
	}
	proto := protocolName(f.proto)
	return fmt.Sprintf("%s-p %s -m %s --dport %d -j DNAT --to-destination %s", host, proto, proto, f.port, f.to)
}

// unpublication removes an owner's chains, and the shared ones with the last
// owner.
func (r ruleset) unpublication(t string) commands {
	c := commands{}
	if !r.has(t) {
		return c
	}
	var chains []string
	for _, chain := range []string{dnatPrefix + t, masqPrefix + t} {
		if r.chains[chain] {
			chains = append(chains, chain)
		}
	}
	if r.hasOthers(t) {
		r.removeJumps(c, t)
		removeChains(c, "nat", chains)
	} else {
		r.removeBase(c, chains)
	}
	return c
}

func (r ruleset) removeJumps(c commands, t string) {
	for range r.jumps[dnatChain+" "+dnatPrefix+t] {
		c.add("nat", "-D %s -m comment --comment %q -j %s%s", dnatChain, r.owners[t], dnatPrefix, t)
	}
	for range r.jumps[masqChain+" "+masqPrefix+t] {
		c.add("nat", "-D %s -j %s%s", masqChain, masqPrefix, t)
	}
}

// removeChains empties all before it deletes the first, since they refer to each
// other.
func removeChains(c commands, table string, chains []string) {
	for _, command := range []string{"-F", "-X"} {
		for _, chain := range chains {
			c.add(table, "%s %s", command, chain)
		}
	}
}

func (r ruleset) hasOthers(t string) bool {
	for chain := range r.chains {
		owner, isOwner := strings.CutPrefix(chain, dnatPrefix)
		if isOwner && chain != dnatChain && owner != t {
			return true
		}
	}
	return false
}

// removeBase removes the shared chains and the last owner's. The jumps between
// them go with a flush: iptables-nft 1.8.9 refuses a table in which a rule is
// deleted and its chain flushed.
func (r ruleset) removeBase(c commands, last []string) {
	chains := map[string][]string{"nat": last}
	for _, b := range bases(r.family) {
		for _, h := range b.hooks {
			for range r.jumps[h.chain+" "+b.chain] {
				c.add(b.table, "-D %s", h.rule(b.chain))
			}
		}
		if r.chains[b.chain] {
			chains[b.table] = append(chains[b.table], b.chain)
		}
	}
	for table, names := range chains {
		removeChains(c, table, names)
	}
}

// restore rewrites the owners of which something is missing, in one go, and
// returns them.
func (r ruleset) restore(ctx context.Context, all []intent) ([]conf.Key, error) {
	var restored []conf.Key
	var errs []error
	c := commands{}
	for _, in := range all {
		if len(r.missing(in)) == 0 {
			continue
		}
		if err := r.refuses(in); err != nil {
			errs = append(errs, err)
			continue
		}
		if len(c) == 0 {
			r.missingBase(c)
		}
		r.publishOwner(c, in)
		r.forwards[tag(in.Owner)] = r.own(in)
		r.owners[tag(in.Owner)] = in.Owner.String()
		restored = append(restored, in.Owner)
	}
	if err := r.apply(ctx, c); err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	return restored, errors.Join(errs...)
}

// apply runs iptables-restore, which changes each table at once or not at all.
func (r ruleset) apply(ctx context.Context, c commands) error {
	var in bytes.Buffer
	for _, table := range []string{"raw", "nat"} {
		if len(c[table]) > 0 {
			fmt.Fprintf(&in, "*%s\n%s\nCOMMIT\n", table, strings.Join(c[table], "\n"))
		}
	}
	if in.Len() == 0 {
		return nil
	}
	argv := []string{r.family.iptables() + "-restore", "--noflush", "--wait"}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = &in
	if r.lock != nil {
		// The lock is the child's too: when we are killed, the next of us waits
		// until this program has ended.
		cmd.ExtraFiles = []*os.File{r.lock}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return iptError(argv, out, err)
	}
	return nil
}

// firstLines are enough of a program's words for a message.
func firstLines(output []byte) string {
	const most = 300
	s := strings.Join(strings.Fields(string(output)), " ")
	return s[:min(len(s), most)]
}
