package cli

import "os/exec"

// packageNames are what the programs that ambi needs are called where distributions
// call them differently.
var packageNames = map[string]map[string]string{
	"dnf":    {"uidmap": "shadow-utils", "iptables": "iptables-nft"},
	"zypper": {"uidmap": "shadow", "containernetworking-plugins": "cni-plugins"},
	"apk":    {"uidmap": "shadow-uidmap", "containernetworking-plugins": "cni-plugins"},
	"pacman": {"uidmap": "shadow", "containernetworking-plugins": "cni-plugins"},
}

var packageManagers = []struct{ program, install string }{
	{"apt-get", "apt-get install -y"}, {"dnf", "dnf install -y"}, {"zypper", "zypper install -y"}, {"apk", "apk add"}, {"pacman", "pacman -S --noconfirm"},
}

// installing is the command line that installs a package, by its Debian name, with
// the package manager of this host.
func installing(name string) string {
	for _, m := range packageManagers {
		if _, err := exec.LookPath(m.program); err == nil {
			if other := packageNames[m.program][name]; other != "" {
				name = other
			}
			return m.install + " " + name
		}
	}
	return packageManagers[0].install + " " + name
}
