package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine says where the figures are from.
type machine struct {
	Processor string `json:"processor"`
	CPUs      int    `json:"cpus"`
	Memory    string `json:"memory"`
	System    string `json:"system"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	// Congestion is the default of TCP, which decides much: BBR paces what it sends.
	Congestion string    `json:"tcpCongestionControl"`
	Date       time.Time `json:"date"`
	// Load is the load average at the start: what others did meanwhile.
	Load float64 `json:"load"`
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d CPUs, %s; %s; Linux %s, TCP %s; %s; %s, load average %.1f at the start",
		m.Processor, m.CPUs, m.Memory, m.System, m.Kernel, m.Congestion, m.Go, m.Date.Format("2006-01-02"), m.Load)
}

func thisMachine() machine {
	var name unix.Utsname
	_ = unix.Uname(&name)
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	return machine{
		Processor:  valueOf("/proc/cpuinfo", "model name", ":"),
		CPUs:       runtime.NumCPU(),
		Memory:     fmt.Sprintf("%.0f GB", float64(info.Totalram)*float64(info.Unit)/1e9),
		System:     strings.Trim(valueOf("/etc/os-release", "PRETTY_NAME", "="), `"`),
		Kernel:     unix.ByteSliceToString(name.Release[:]),
		Go:         runtime.Version(),
		Congestion: firstLineOf("/proc/sys/net/ipv4/tcp_congestion_control"),
		Date:       time.Now().UTC().Truncate(time.Second),
		Load:       loadAverage(),
	}
}

// valueOf finds "key <separator> value" in a file.
func valueOf(file, key, separator string) string {
	text, _ := os.ReadFile(file)
	for l := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(l, separator); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func firstLineOf(file string) string {
	text, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// warnIfBusy says when somebody else uses the machine: no figure is worth much then.
func warnIfBusy() {
	if load := loadAverage(); load > 0.5 {
		fmt.Fprintf(os.Stderr, "bench: the machine is busy (load average %.1f): wait until it is quiet for figures that count\n", load)
	}
}

// loadAverage is that of the last minute (proc_loadavg(5)).
func loadAverage() (load float64) {
	text, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(text), &load)
	return load
}

// versions asks every program of the benchmark for its version.
func versions() map[string]string {
	rootlesskit := firstLine(stage+"/tools/rootlesskit", "--version")
	return map[string]string{
		"ambi": firstLine(stage+"/bin/ambi", "version"), "sourceIP=gateway": firstLine(stage+"/bin/ambi", "version"),
		"RootlessKit": rootlesskit, "RootlessKit, no source IP": rootlesskit,
		"Podman rootlessport": "podman " + packaged("podman"),
		"slirp4netns":         firstLine("slirp4netns", "--version"),
		"pasta":               "passt " + packaged("passt"), // it does not know itself
	}
}

func firstLine(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return "unknown"
	}
	l, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(l)
}

func packaged(name string) string {
	return firstLine("dpkg-query", "-W", "-f", "${Version}", name)
}
