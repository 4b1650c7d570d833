package link

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Places in struct tcmsg.
const (
	atTcHandle = 8
	atTcParent = 12
	atTcInfo   = 16
)

// traffic is what tc(8) sets: queueing disciplines, their classes, the disciplines in
// these, and filters.
func (p *Place) traffic(of names) ([]*message, error) {
	qdiscs, err := p.list(ask("listing the queueing disciplines", unix.RTM_NEWQDISC, make([]byte, sizeofTcMsg)))
	if err != nil {
		return nil, err
	}
	qdiscs = slices.DeleteFunc(qdiscs, func(m *message) bool { return !m.asTraffic(of) })
	var inner, classes, filters []*message
	for _, m := range qdiscs {
		of1, err := p.list(m.within(unix.RTM_NEWTCLASS, number(m.Data[atTcHandle:])))
		if err != nil {
			return nil, err
		}
		of1 = slices.DeleteFunc(of1, func(m *message) bool { return !m.asTraffic(of) })
		classes = append(classes, of1...)
		for _, parent := range append(parents(m), handles(of1)...) {
			list, err := p.list(m.within(unix.RTM_NEWTFILTER, parent))
			if err != nil {
				return nil, err
			}
			filters = append(filters, slices.DeleteFunc(list, func(m *message) bool { return !m.asTraffic(of) })...)
		}
	}
	qdiscs = slices.DeleteFunc(qdiscs, func(m *message) bool {
		isInner := number(m.Data[atTcParent:]) < tcIngress
		if isInner {
			inner = append(inner, m)
		}
		return isInner
	})
	return slices.Concat(qdiscs, parentsFirst(classes), inner, filters), nil
}

// parentsFirst has each class come after the one that it is in: without it htb takes it
// for one of the first level.
func parentsFirst(classes []*message) (sorted []*message) {
	waiting := func(m *message) bool { // its parent is still to come
		return slices.ContainsFunc(classes, func(p *message) bool {
			return bytes.Equal(p.Data[atIndex:atTcHandle], m.Data[atIndex:atTcHandle]) && number(p.Data[atTcHandle:]) == number(m.Data[atTcParent:])
		})
	}
	for len(classes) > 0 {
		i := max(0, slices.IndexFunc(classes, func(m *message) bool { return !waiting(m) }))
		sorted = append(sorted, classes[i])
		classes = slices.Delete(classes, i, i+1)
	}
	return sorted
}

// Handles of linux/pkt_sched.h.
const (
	tcIngress      = 0xfffffff1 // TC_H_INGRESS and TC_H_CLSACT; above it is TC_H_ROOT
	tcClsactIn     = 0xfffffff2 // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
	tcClsactOut    = 0xfffffff3
	u32Root        = 0x80000000 // the hash table that a u32 filter begins with
	tcaU32Divisor  = 4
	flagsOfSetting = 1<<0 | 1<<1 | 1<<4 // TCA_CLS_FLAGS_SKIP_HW, _SKIP_SW, _VERBOSE; the others are state
)

// Attributes of classes, filters and actions, and places in them
// (linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h).
const (
	htbParms, htbLevel, htbPrio         = 1, 36, 40 // TCA_HTB_PARMS, struct tc_htb_opt
	htbInit, htbDirect                  = 2, 16     // TCA_HTB_INIT, struct tc_htb_glob
	u32Counters                         = 9         // TCA_U32_PCNT
	actKind, actOptions, actStats       = 1, 2, 4   // TCA_ACT_KIND, …
	mirredTimes, mirredParms            = 1, 2      // TCA_MIRRED_TM, TCA_MIRRED_PARMS
	mirredUsers, mirredEnd, mirredIndex = 12, 20, 24
)

// filterFlags are the attributes of a filter's options that have such flags.
var filterFlags = map[string]uint16{"u32": 11, "flower": 22, "matchall": 3, "bpf": 9}

// parents are those of the filters of a queueing discipline.
func parents(m *message) []uint32 {
	if text(m.get(unix.TCA_KIND)) == "clsact" {
		return []uint32{tcClsactIn, tcClsactOut}
	}
	return []uint32{number(m.Data[atTcHandle:])}
}

func handles(list []*message) (all []uint32) {
	for _, m := range list {
		all = append(all, number(m.Data[atTcHandle:]))
	}
	return all
}

// within asks for the list of what a message is about has of a kind.
func (m *message) within(kind uint16, parent uint32) question {
	header := make([]byte, sizeofTcMsg)
	copy(header[atIndex:], m.Data[atIndex:atIndex+4])
	put(header[atTcParent:], parent)
	return ask("listing the classes and filters", kind, header)
}

// classful are the queueing disciplines whose classes people make.
var classful = []string{"htb", "hfsc", "drr", "qfq"}

// asTraffic is asAddress of traffic control. The queueing discipline that an interface
// or a class has by itself bears no number.
func (m *message) asTraffic(of names) bool {
	name, ok := of[int(number(m.Data[atIndex:]))]
	kind := text(m.get(unix.TCA_KIND))
	if !ok || number(m.Data[atTcHandle:]) == 0 {
		return false
	}
	m.change(func(a attribute) []byte {
		if a.is(unix.TCA_STATS) || a.is(unix.TCA_STATS2) || a.is(unix.TCA_XSTATS) || a.is(unix.TCA_HW_OFFLOAD) || a.is(unix.TCA_RATE) {
			return nil
		}
		return a.value
	})
	handle := number(m.Data[atTcHandle:])
	switch m.Kind {
	case unix.RTM_NEWTCLASS:
		put(m.Data[atTcInfo:], 0) // its discipline
		if parms := nested(m.get(unix.TCA_OPTIONS), htbParms); kind == "htb" && len(parms) >= htbPrio+4 {
			if number(parms[htbLevel:]) > 0 { // others are in it, so it has none
				put(parms[htbPrio:], 0)
			}
			put(parms[htbLevel:], 0)
		}
		m.What = fmt.Sprintf("class %s %x:%x of interface %s", kind, handle>>16, handle&0xffff, name)
		return slices.Contains(classful, kind)
	case unix.RTM_NEWTFILTER:
		m.What = fmt.Sprintf("filter %s %x of interface %s", kind, handle, name)
		return m.asFilter(kind, handle)
	}
	put(m.Data[atTcInfo:], 0) // its users
	if glob := nested(m.get(unix.TCA_OPTIONS), htbInit); kind == "htb" && len(glob) > htbDirect {
		// The kernel shows its version in another form than it takes it (net/sched/sch_htb.c).
		put(glob, number(glob)>>16)
		put(glob[htbDirect:], 0) // a figure: packets that no class was for
	}
	m.What = fmt.Sprintf("queueing discipline %s of interface %s", kind, name)
	return true
}

func (m *message) asFilter(kind string, handle uint32) bool {
	options := m.get(unix.TCA_OPTIONS)
	if options == nil || kind == "u32" && handle&0xfffff == 0 && handle&u32Root == u32Root && nested(options, tcaU32Divisor) != nil {
		return false
	}
	if kind == "u32" {
		clear(nested(options, u32Counters))
	}
	eachAction(options, func(action []byte) {
		clear(nested(action, actStats))
		options := nested(action, actOptions)
		clear(nested(options, mirredTimes))
		if parms := nested(options, mirredParms); text(nested(action, actKind)) == "mirred" && len(parms) >= mirredIndex {
			clear(parms[mirredUsers:mirredEnd])
		}
	})
	if flags := nested(options, filterFlags[kind]); filterFlags[kind] != 0 && len(flags) == 4 {
		put(flags, number(flags)&flagsOfSetting)
	}
	return true
}

// eachAction calls f with the actions in a filter's options.
func eachAction(options []byte, f func(action []byte)) {
	list, _ := parseAttributes(options)
	for _, a := range list {
		actions, _ := parseAttributes(a.value)
		for _, action := range actions {
			if nested(action.value, actKind) != nil && nested(action.value, actOptions) != nil {
				f(action.value)
			}
		}
	}
}

// eachMirred calls f with the places in a filter's options that name an interface: those
// of actions of the kind mirred.
func eachMirred(options []byte, f func(b []byte)) {
	eachAction(options, func(action []byte) {
		if parms := nested(nested(action, actOptions), mirredParms); text(nested(action, actKind)) == "mirred" && len(parms) >= mirredIndex+4 {
			f(parms[mirredIndex:])
		}
	})
}
