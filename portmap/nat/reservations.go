package nat

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// reservations are the sockets with which a container's engine keeps others from
// its published ports. It never reads from them, since a translation comes before.
// They are no reason to refuse the port. Which they are:
//
//   - those of a process of our own user that names the container on its command line:
//     Podman binds all ports, as root, and leaves them to conmon. When the network of a
//     running container is set up once more (podman network reload, podman network
//     connect) they are there already. Anybody can write a name;
//   - those of the process that called us: nerdctl (2.1.6) binds the ports and leaves
//     them to a child that sleeps, Apptainer keeps them itself (and the container's ID
//     is the number of its process);
//   - those that were found so when an earlier attachment of the container was made:
//     of nerdctl's only the child is left by then, and nothing tells whose it is.
type reservations struct {
	containerID string
	known       []uint32        // inodes
	inodes      map[uint32]bool // nil until somebody asks: nobody does without a conflict
	met         []uint32        // those that somebody asked about
}

func newReservations(owner conf.Key, known []uint32) *reservations {
	return &reservations{containerID: owner.ContainerID, known: known}
}

// shortestID is how long a container ID must be to be told from any other word of
// a command line.
const shortestID = 12

func (r *reservations) hold(inode uint32) bool {
	if r.inodes == nil {
		r.inodes = map[uint32]bool{}
		r.add(r.known)
		r.add(r.ofCaller(os.Getppid()))
		if len(r.containerID) >= shortestID {
			r.readNamed()
		}
	}
	held := r.inodes[inode]
	if held && !slices.Contains(r.met, inode) {
		r.met = append(r.met, inode)
	}
	return held
}

func (r *reservations) add(inodes []uint32) {
	for _, inode := range inodes {
		r.inodes[inode] = true
	}
}

func (r *reservations) readNamed() {
	for _, pid := range processes() {
		var st unix.Stat_t
		if unix.Stat("/proc/"+pid, &st) != nil || int(st.Uid) != os.Geteuid() {
			continue
		}
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		for argument := range bytes.SplitSeq(line, []byte{0}) {
			if string(argument) == r.containerID {
				r.add(socketsOf("/proc/" + pid))
				break
			}
		}
	}
}

// ofCaller are the sockets that the process which called us holds for the container,
// and none of any process before it: sshd's port stays sshd's. An engine that is a
// daemon may have a service of its own on a port, and that is no reservation: it
// waits there for clients, and nobody else has the socket.
func (r *reservations) ofCaller(pid int) []uint32 {
	if pid <= 1 {
		return nil // who called us has ended, and init has adopted us; or it is outside our /proc
	}
	caller := "/proc/" + strconv.Itoa(pid)
	held := socketsOf(caller)
	served := waitedOn(caller)
	if len(served) == 0 || r.containerID == strconv.Itoa(pid) || parentOf(r.containerID) == pid {
		return held
	}
	shared := socketsBeside(pid)
	return slices.DeleteFunc(held, func(inode uint32) bool { return served[inode] && !shared[inode] })
}

// parentOf is 0 for what is no number of a process.
func parentOf(pid string) (parent int) {
	if _, err := strconv.Atoi(pid); err != nil {
		return 0
	}
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	_, after, _ := strings.Cut(string(status), "\nPPid:")
	_, _ = fmt.Sscan(after, &parent)
	return parent
}

// socketsBeside are the sockets of all processes but one. Two others do not count: init,
// which keeps the socket of an engine that it started for it (systemd.socket(5)), and we,
// who may have inherited it.
func socketsBeside(pid int) map[uint32]bool {
	all := map[uint32]bool{}
	for _, other := range processes() {
		if slices.Contains([]string{strconv.Itoa(pid), "1", strconv.Itoa(os.Getpid())}, other) {
			continue
		}
		for _, inode := range socketsOf("/proc/" + other) {
			all[inode] = true
		}
	}
	return all
}

// waitedOn are the inodes of the files whose events a process waits for by epoll(7),
// as proc_pid_fdinfo(5) shows them since Linux 4.13: "tfd: 5 events: 19 data: … pos:0
// ino:61ef sdev:7", in hexadecimal. Inodes of other files than sockets do no harm.
func waitedOn(dir string) map[uint32]bool {
	inodes := map[uint32]bool{}
	infos, _ := os.ReadDir(dir + "/fdinfo")
	for _, info := range infos {
		text, _ := os.ReadFile(dir + "/fdinfo/" + info.Name())
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			_, after, ok := strings.Cut(lines.Text(), " ino:")
			var inode uint32
			if ok && strings.HasPrefix(lines.Text(), "tfd:") {
				if _, err := fmt.Sscanf(after, "%x", &inode); err == nil {
					inodes[inode] = true
				}
			}
		}
	}
	return inodes
}
