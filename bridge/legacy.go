package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyFilter reads the table filter of the legacy iptables by getsockopt(2), as
// iptables-legacy does (linux/netfilter_ipv4/ip_tables.h); nil when the kernel has
// none. It is not asked for unless it is there: asking would make it.
func legacyFilter(v6 bool, chain string) (*filter, error) {
	l := legacyIPv4
	if v6 {
		l = legacyIPv6
	}
	names, err := os.ReadFile(l.names)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for an iptables firewall: %w", err)
	}
	if !slices.Contains(strings.Fields(string(names)), "filter") {
		return nil, nil
	}
	entries, begin, policy, err := l.read(hooks[chain])
	if err != nil {
		return nil, fmt.Errorf("reading table filter of %s: %w", l.command, err)
	}
	return &filter{
		command: variant(l.command, "-legacy"),
		drops:   l.drops(entries, policy),
		rules:   func() [][]byte { return l.rules(entries, begin, policy) },
	}, nil
}

// rules are the entries of a chain before its policy.
func (l legacy) rules(entries []byte, at, policy uint32) (rules [][]byte) {
	next := uint32(l.targetOffset + 2) // where the field next_offset is
	for at+next+2 <= policy && int(policy) <= len(entries) {
		size := uint32(binary.NativeEndian.Uint16(entries[at+next:]))
		if size == 0 || at+size > policy {
			break
		}
		rules = append(rules, entries[at:at+size])
		at += size
	}
	return rules
}

// legacy is what differs between the two families.
type legacy struct {
	command, names string
	domain, level  int
	targetOffset   int // of the field target_offset in struct ipt_entry or ip6t_entry
}

// /proc/net is that of the process's first thread.
var (
	legacyIPv4 = legacy{"iptables", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, 88}
	legacyIPv6 = legacy{"ip6tables", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 140}
)

// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the same in both families, and struct
// ipt_getinfo and the head of struct ipt_get_entries.
const (
	soGetInfo    = 64
	soGetEntries = 65
	tableNameLen = 32
	hookInput    = 1  // NF_INET_LOCAL_IN
	hookForward  = 2  // NF_INET_FORWARD
	dropVerdict  = -1 // -NF_DROP - 1
)

type legacyInfo struct {
	name                  [tableNameLen]byte
	validHooks            uint32
	hookEntry, underflow  [5]uint32
	numberOfEntries, size uint32
}

// read returns the table's entries and where among them a chain begins, and its policy is.
func (l legacy) read(hook int) (entries []byte, begin, policy uint32, err error) {
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, 0, 0, err
	}
	defer unix.Close(fd)
	const tries = 10 // the table may change between the two calls
	for range tries {
		var info legacyInfo
		copy(info.name[:], "filter")
		if err = getsockopt(fd, l.level, soGetInfo, unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))); err != nil {
			return nil, 0, 0, err
		}
		const head = tableNameLen + 8 // the size, and room for 8-byte alignment
		b := make([]byte, head+int(info.size))
		copy(b, "filter")
		binary.NativeEndian.PutUint32(b[tableNameLen:], info.size)
		err = getsockopt(fd, l.level, soGetEntries, b)
		if err == nil {
			return b[head:], info.hookEntry[hook], info.underflow[hook], nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return nil, 0, 0, err
}

func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// drops reads a policy: an entry whose target is a verdict, -NF_DROP - 1 for drop.
func (l legacy) drops(entries []byte, at uint32) bool {
	const target = 32 // struct xt_entry_target, before the verdict
	if int(at)+l.targetOffset+2 > len(entries) {
		return false
	}
	verdict := int(at) + int(binary.NativeEndian.Uint16(entries[int(at)+l.targetOffset:])) + target
	return verdict+4 <= len(entries) && int32(binary.NativeEndian.Uint32(entries[verdict:])) == dropVerdict
}
