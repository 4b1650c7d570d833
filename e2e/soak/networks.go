package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// network is one configuration, all but runtimeConfig.
type network struct {
	name    string
	members string
	// wish makes the part of runtimeConfig that only this network takes; may be nil.
	wish func(r *rand.Rand) string
}

// networks are the valid configurations of each mode.
var networks = map[string][]network{
	"root": {
		{name: "default", members: `"bridge":{"name":"soak0","subnet":"10.20.0.0/24","subnet6":"fd20::/64"}`, wish: func(r *rand.Rand) string {
			return fmt.Sprintf(`"ips":["10.20.0.%d"],"mac":"02:00:00:00:00:%02x"`, 50+r.IntN(40), r.IntN(256))
		}},
		{name: "open", members: `"bridge":{"isolate":false,"defaultRoute":true}`, wish: func(*rand.Rand) string {
			return `"bandwidth":{"ingressRate":80000000,"ingressBurst":8000000,"egressRate":80000000,"egressBurst":8000000}`
		}},
		{name: "chain", members: `"portmap":{"backend":"iptables"},"delegates":[
 {"type":"bridge","bridge":"soak1","isGateway":true,"ipMasq":true,"ipMasqBackend":"iptables","hairpinMode":true,"capabilities":{"ips":true,"mac":true},
  "ipam":{"type":"host-local","dataDir":"/run/soak","subnet":"10.21.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"firewall"},{"type":"tuning","mtu":1400}]`, wish: func(r *rand.Rand) string {
			return fmt.Sprintf(`"mac":"02:00:00:00:00:%02x"`, r.IntN(256))
		}},
		{name: "ptp", members: `"delegates":[
 {"type":"ptp","ipMasq":true,"ipMasqBackend":"nftables","ipam":{"type":"host-local","dataDir":"/run/soak","subnet":"10.22.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]`},
		{name: "slow", members: `"portmap":{"snat":false},"delegates":[
 {"type":"bridge","bridge":"soak3","isGateway":true,"ipam":{"type":"host-local","dataDir":"/run/soak","subnet":"10.23.0.0/24"}},
 {"type":"bandwidth","ingressRate":80000000,"ingressBurst":8000000,"egressRate":80000000,"egressBurst":8000000}]`},
	},
	"rootless": {
		{name: "default", members: `"rootless":{"network":"private"}`, wish: func(r *rand.Rand) string {
			return fmt.Sprintf(`"mac":"02:00:00:00:00:%02x"`, r.IntN(256))
		}},
		{name: "gateway", members: `"rootless":{"network":"private","sourceIP":"gateway","cidr":"10.31.0.0/24","mtu":1500,"enableIPv6":false}`},
		{name: "slirp", members: `"rootless":{"network":"private","portHandler":"slirp4netns","cidr":"10.32.0.0/24","disableDNS":true}`},
		{name: "open", members: `"rootless":{"network":"private","cidr":"10.33.0.0/24","allowHostLoopback":true,"sandbox":false}`, wish: func(r *rand.Rand) string {
			return fmt.Sprintf(`"ips":["10.33.0.%d"]`, 50+r.IntN(40))
		}},
	},
	"shared": {
		{name: "default", members: `"rootless":{"network":"shared"},"bridge":{"subnet":"10.41.0.0/24","subnet6":"fd41::/64"}`, wish: func(r *rand.Rand) string {
			return fmt.Sprintf(`"ips":["10.41.0.%d"],"mac":"02:00:00:00:00:%02x"`, 50+r.IntN(40), r.IntN(256))
		}},
		{name: "open", members: `"rootless":{"network":"shared","mtu":1500,"enableIPv6":false,"sourceIP":"gateway"},"bridge":{"isolate":false,"defaultRoute":true}`, wish: func(*rand.Rand) string {
			return `"bandwidth":{"ingressRate":80000000,"ingressBurst":8000000,"egressRate":80000000,"egressBurst":8000000}`
		}},
		{name: "chain", members: `"rootless":{"network":"shared"},"delegates":[
 {"type":"bridge","bridge":"soak1","isGateway":true,"ipMasq":true,"ipMasqBackend":"iptables","hairpinMode":true,"capabilities":{"ips":true,"mac":true},
  "ipam":{"type":"host-local","subnet":"10.42.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"firewall"},{"type":"tuning","mtu":1400}]`, wish: func(r *rand.Rand) string {
			return fmt.Sprintf(`"mac":"02:00:00:00:00:%02x"`, r.IntN(256))
		}},
		{name: "ptp", members: `"rootless":{"network":"shared"},"delegates":[
 {"type":"ptp","ipMasq":true,"ipMasqBackend":"nftables","ipam":{"type":"host-local","dataDir":"/run/soak","subnet":"10.43.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]`},
	},
}

// configuration is the whole entry. The callers share few host ports, so that they
// often want the same.
func (n network) configuration(runtimeConfig, more string) string {
	config := fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"type":"ambi","capabilities":{"portMappings":true,"ips":true,"mac":true,"bandwidth":true}`, n.name)
	for _, members := range []string{n.members, runtimeConfig, more} {
		if members != "" {
			config += "," + members
		}
	}
	return config + "}"
}

// runtimeConfig is what a runtime asks for one container.
func (n network) runtimeConfig(r *rand.Rand) string {
	var wishes, ports []string
	for range r.IntN(4) {
		protocol := []string{"tcp", "udp"}[r.IntN(2)]
		ports = append(ports, fmt.Sprintf(`{"hostPort":%d,"containerPort":%d,"protocol":%q}`, 20000+r.IntN(40), 1+r.IntN(100), protocol))
	}
	if len(ports) > 0 {
		wishes = append(wishes, `"portMappings":[`+strings.Join(ports, ",")+`]`)
	}
	if n.wish != nil && r.IntN(2) == 0 {
		wishes = append(wishes, n.wish(r))
	}
	return `"runtimeConfig":{` + strings.Join(wishes, ",") + `}`
}

// invalid are configurations that every ADD has to refuse.
var invalid = []string{
	``, `null`, `[]`, `{`, `{"cniVersion":"1.1.0"}`, `{"cniVersion":"9.0.0","name":"default","type":"ambi"}`,
	`{"cniVersion":"1.1.0","name":"a/b","type":"ambi"}`, `{"cniVersion":"1.1.0","name":"default","type":"ambi","modee":1}`,
	`{"cniVersion":"1.1.0","name":"default","type":"ambi","mode":"half"}`, `{"cniVersion":"1.1.0","name":"default","type":"ambi","rootless":{"cidr":"fd00::/64"}}`,
	`{"cniVersion":"1.1.0","name":"default","type":"ambi","runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":80}]}}`,
	`{"cniVersion":"1.1.0","name":"default","type":"ambi","runtimeConfig":{"ips":["nowhere"]}}`,
	`{"cniVersion":"1.1.0","name":"default","type":"ambi","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp"},{"hostPort":1,"containerPort":1,"protocol":"tcp"}]}}`,
	`{"cniVersion":"1.1.0","name":"default","type":"ambi","prevResult":{"cniVersion":"1.1.0","ips":[null]}}`,
	`{"cniVersion":"1.1.0","name":"default","type":"ambi","delegates":[{"type":"nosuchplugin"}],"rootless":{"mtu":1}}`,
}

// damaged is a configuration with some bytes changed.
func damaged(r *rand.Rand, config string) string {
	b := []byte(config)
	for range 1 + r.IntN(4) {
		if len(b) == 0 {
			break
		}
		switch i := r.IntN(len(b)); r.IntN(3) {
		case 0:
			b[i] = byte(r.IntN(256))
		case 1:
			b = append(b[:i], b[i+1:]...)
		case 2:
			b = b[:i+1]
		}
	}
	return string(b)
}
