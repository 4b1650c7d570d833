package suite

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"
)

const greeting = "hello from inside\n"

// serve greets whoever connects to the container's port 80.
func (l *lab) serve(c *container) {
	var listener net.Listener
	l.must(c.do(func() (err error) {
		listener, err = net.Listen("tcp", ":80")
		return err
	}))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(greeting))
			conn.Close()
		}
	}()
	l.clean = append(l.clean, func() { listener.Close() })
}

// reached says whether the service answers at an address of the host.
func reached(host string, port int) bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return line == greeting
}

// The addresses of the host.
const hostIPv4, otherIPv4, hostIPv6 = "192.0.2.1", "192.0.2.7", "2001:db8::1"

// reachable fails unless the service is reached at this address of the host and at
// none of the others.
func (l *lab) reachable(at string, port int, others ...string) {
	if at != "" && !waitUntil(func() bool { return reached(at, port) }) {
		l.fail("published on %s, port %d is not reached there", at, port)
	}
	for _, other := range others {
		if reached(other, port) {
			l.fail("port %d is reached on %s, where it is not published", port, other)
		}
	}
}

// publish attaches a container with a service whose port is published on an address.
func (l *lab) publish(hostIP string) (*attachment, outcome, int) {
	p := l.freshPort()
	p.HostIP = hostIP
	a := l.newAttachment(withRuntime(object{}.with("portMappings", []portMapping{p})))
	l.serve(a.container)
	return a, a.add(), p.HostPort
}

func hostIPOnly(l *lab) {
	l.needsPorts()
	a, o, port := l.publish("")
	l.succeeds(o)
	l.reachable(hostIPv4, port)
	a.takeDown()

	a, o, port = l.publish(hostIPv4)
	l.succeeds(o)
	hasIPv6 := slices.ContainsFunc(a.own(), func(ip *ipConfig100) bool { return ip.Address.IP.To4() == nil })
	l.reachable(hostIPv4, port, otherIPv4, "127.0.0.1", hostIPv6)
	a.takeDown()

	a, o, port = l.publish(hostIPv6)
	switch {
	case hasIPv6:
		l.succeeds(o)
		l.reachable(hostIPv6, port, "::1", hostIPv4)
		l.saw("IPv4 and IPv6, each where it is published and nowhere else")
	case o.ok():
		l.reachable("", port, hostIPv4, "127.0.0.1")
		l.saw("an IPv6 hostIP for a container without IPv6 publishes nothing")
	default:
		l.fails(o, "an IPv6 hostIP for a container without IPv6:")
		l.saw("%s", o)
	}
	if o.ok() {
		a.takeDown()
	}
}

func boundHostPort(l *lab) {
	l.needsPorts()
	l.warm()
	p := l.freshPort()
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", p.HostPort))
	l.must(err)
	defer listener.Close()
	a := l.newAttachment(withRuntime(object{}.with("portMappings", []portMapping{p})))
	before := l.snapshot(a.container)
	o := a.add()
	l.fails(o, "with the host port bound:")
	if !o.says(strconv.Itoa(p.HostPort)) {
		l.fail("the message does not name the port: %s", o)
	}
	l.unchanged(before, "after the error", a.container)
	l.saw("%s", o)
}
