package nat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// TestNoProcess shows that the nftables backend does without any program.
func TestNoProcess(t *testing.T) {
	l := &lab{host: newSpace(t), backend: conf.BackendNFTables}
	t.Setenv("PATH", "")
	p := publishWeb(port(conf.TCP, "", 80, 80), port(conf.UDP, hostAddr, 53, 53))
	l.add(t, p)
	require.NoError(t, l.check(t, p))
	require.NoError(t, l.restore(t, p))
	l.del(t, p)
}

// TestBoundedProcesses counts the programs that the iptables backend runs: as many
// for a thousand ports as for one.
func TestBoundedProcesses(t *testing.T) {
	needLongMessages(t)
	log := countPrograms(t)
	var counts []int
	for _, n := range []uint16{1, 1000} {
		l := &lab{host: newSpace(t), backend: conf.BackendIPTables}
		p := publishWeb()
		for i := range n {
			p.Ports = append(p.Ports, port(conf.TCP, "", 1000+i, 80))
		}
		require.NoError(t, os.WriteFile(log, nil, 0o600))
		l.add(t, p)
		l.del(t, p)
		ran, err := os.ReadFile(log)
		require.NoError(t, err)
		counts = append(counts, strings.Count(string(ran), "\n"))
	}
	// For Add and Del each: two versions, two saves, two restores.
	require.Equal(t, []int{12, 12}, counts)
}

// needLongMessages is for a thousand rules of iptables-nft, which it sends as one
// message: longer than a socket takes that has its buffer by rights in a user namespace.
func needLongMessages(t *testing.T) {
	t.Helper()
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	require.NoError(t, err)
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20); err != nil {
		t.Skip("needs root outside of a user namespace, for long messages to the kernel: SO_SNDBUFFORCE: ", err)
	}
}

// countPrograms has every run of an iptables program leave a line in a file.
func countPrograms(t *testing.T) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(name + suffix)
			if err != nil {
				t.Skip("needs " + name + suffix)
			}
			script := fmt.Sprintf("#!/bin/sh\necho $0 >> %s\nexec %s \"$@\"\n", log, program)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name+suffix), []byte(script), 0o700))
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}
