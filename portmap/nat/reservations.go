package nat

import (
	"bytes"
	"os"
)

// reservations are the sockets with which a container's engine keeps others from
// its published ports: Podman binds them all, as root, and leaves them to conmon,
// which never reads from them, since a translation comes before. When the network
// of a running container is set up once more (podman network reload, podman
// network connect) they are there already, and are no reason to refuse the port.
//
// They are told by their process, which names the container on its command line.
type reservations struct {
	containerID string
	inodes      map[uint32]bool // nil until somebody asks: nobody does without a conflict
}

// shortestID is how long a container ID must be to be told from any other word of
// a command line.
const shortestID = 12

func (r *reservations) hold(inode uint32) bool {
	if r.inodes == nil {
		r.inodes = map[uint32]bool{}
		if len(r.containerID) >= shortestID {
			r.read()
		}
	}
	return r.inodes[inode]
}

func (r *reservations) read() {
	for _, pid := range processes() {
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		for argument := range bytes.SplitSeq(line, []byte{0}) {
			if string(argument) != r.containerID {
				continue
			}
			for _, inode := range socketsOf("/proc/" + pid) {
				r.inodes[inode] = true
			}
			break
		}
	}
}
