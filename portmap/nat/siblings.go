package nat

import "github.com/ambi-cni/ambi/conf"

// Engines hand all port mappings of a container to each of its networks (Podman's
// --network web,db, containerd with several conflists). So the attachments of one
// container are siblings: a port that one of them publishes is no conflict for the
// other, which leaves it to the first. When that goes, Restore of the other
// publishes it.

// siblings says whether the named owner is another attachment of the container.
func siblings(k conf.Key, owner string) bool {
	other, ok := parseOwner(owner)
	return ok && other != k && other.ContainerID == k.ContainerID
}

// firstOfSiblings are the mappings of all, each slot once.
func firstOfSiblings(all []intent) []forward {
	seen := map[slot]bool{}
	var first []forward
	for _, p := range all {
		for _, f := range p.forwards {
			if !seen[f.slot] {
				seen[f.slot] = true
				first = append(first, f)
			}
		}
	}
	return first
}
