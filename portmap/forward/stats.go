package forward

import (
	"sync/atomic"

	"github.com/ambi-cni/ambi/conf"
)

// PortStats are a published port and its counters.
type PortStats struct {
	Mapping conf.PortMapping `json:"mapping"`
	PortCounters
}

// PortCounters are the counters of one published port since it was added, as "ambi stats
// --json" prints them, too. In is from the client to the service.
type PortCounters struct {
	Active int64  `json:"active"` // connections or UDP flows now
	Total  uint64 `json:"total"`  // and in all

	BytesIn  uint64 `json:"bytesIn"`
	BytesOut uint64 `json:"bytesOut"`

	// Refused counts TCP connections that the service refused or did not answer, and
	// UDP flows whose service port was closed.
	Refused uint64 `json:"refused"`

	// Dropped counts UDP datagrams that could not be delivered, and TCP connections
	// lost for want of descriptors or memory.
	Dropped uint64 `json:"dropped"`

	// PortFallbacks counts connections and flows that came from the client's address,
	// but from another port, as its own could not be had inside.
	PortFallbacks uint64 `json:"portFallbacks"`

	// GatewayFallbacks counts connections and flows that came from the gateway's
	// address although the client's was to be preserved.
	GatewayFallbacks uint64 `json:"gatewayFallbacks"`

	// AcceptPauses counts how often accepting paused because descriptors or memory
	// ran out.
	AcceptPauses uint64 `json:"acceptPauses"`

	// FlowsGaveWay counts UDP flows that were closed before their time, as the table was full.
	FlowsGaveWay uint64 `json:"flowsGaveWay"`

	// GaveWay counts TCP connections that were closed, or not served at all, as there was not
	// room for all and their client had most, for those of clients that had less.
	GaveWay uint64 `json:"gaveWay"`
}

// counters are the live PortCounters; workers share a port.
type counters struct {
	active           atomic.Int64
	total            atomic.Uint64
	bytes            [2]atomic.Uint64 // by direction: in, out
	refused          atomic.Uint64
	dropped          atomic.Uint64
	portFallbacks    atomic.Uint64
	gatewayFallbacks atomic.Uint64
	acceptPauses     atomic.Uint64
	flowsGaveWay     atomic.Uint64
	gaveWay          atomic.Uint64
}

// came counts what the service sees of a client that was to be preserved.
func (c *counters) came(o origin) {
	switch o {
	case otherPort:
		c.portFallbacks.Add(1)
	case byGateway:
		c.gatewayFallbacks.Add(1)
	}
}

func (c *counters) read(m conf.PortMapping) PortStats {
	return PortStats{m, PortCounters{
		Active: c.active.Load(), Total: c.total.Load(),
		BytesIn: c.bytes[up].Load(), BytesOut: c.bytes[down].Load(),
		Refused: c.refused.Load(), Dropped: c.dropped.Load(),
		PortFallbacks: c.portFallbacks.Load(), GatewayFallbacks: c.gatewayFallbacks.Load(), AcceptPauses: c.acceptPauses.Load(),
		FlowsGaveWay: c.flowsGaveWay.Load(), GaveWay: c.gaveWay.Load(),
	}}
}
