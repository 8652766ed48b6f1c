package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"reflect"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

const (
	// extraBootstrap is the number of admitted peers that an agent may start from besides the published set, so that it
	// finds somebody when that set is old. Each agent has its own.
	extraBootstrap = 8
	// rememberMembersEvery bounds how often the members are written to disk while nodes come and go.
	rememberMembersEvery = 5 * time.Second
)

// followMembers keeps whom the swarm admits, and its bootstrap set, as the API server has them. Until it has answered,
// what is remembered holds.
func (a *Agent) followMembers(ctx context.Context) {
	known, ok := recall[knownPeers](a.opts.Memory, a.log, keyMembers)
	if ok {
		a.admit(known)
		a.log.Info("members are those that were admitted last", "admitted", len(known.Admitted))
	}
	if !a.api.peers.synced(ctx) {
		return
	}
	remembered := known
	var nextWrite time.Time
	due := time.NewTimer(0) // fires when what changed too soon after the last write is to be written
	defer due.Stop()
	for {
		now := a.seenMembers(known)
		if !ok || !reflect.DeepEqual(now, known) {
			a.admit(now)
			known, ok = now, true
		}
		a.admission.Store(true)
		if !reflect.DeepEqual(known, remembered) {
			if wait := time.Until(nextWrite); wait > 0 {
				due.Reset(wait)
			} else {
				remember(a.opts.Memory, a.log, keyMembers, known)
				remembered, nextWrite = known, time.Now().Add(rememberMembersEvery)
			}
		}
		select {
		case <-ctx.Done():
			if !reflect.DeepEqual(known, remembered) {
				remember(a.opts.Memory, a.log, keyMembers, known)
			}
			return
		case <-a.membersChanged:
		case <-due.C:
		}
	}
}

// seenMembers are the members by the informers. Of a Swarm that has not been seen yet the remembered bootstrap set
// stands.
func (a *Agent) seenMembers(before knownPeers) knownPeers {
	m := knownPeers{Admitted: []knownPeer{}, Bootstrap: []knownPeer{}}
	for _, p := range a.api.peers.list() {
		if p.IsAdmitted() {
			m.Admitted = append(m.Admitted, knownPeer{ID: p.Spec.PeerID, Addresses: p.Spec.Addresses})
		}
	}
	slices.SortFunc(m.Admitted, func(a, b knownPeer) int { return cmp.Compare(a.ID, b.ID) })
	if !a.api.swarms.HasSynced() {
		m.Bootstrap = before.Bootstrap
		return m
	}
	if s, ok := a.api.swarms.get(v1alpha1.SwarmName); ok {
		for _, b := range s.Status.Bootstrap {
			m.Bootstrap = append(m.Bootstrap, knownPeer{ID: b.PeerID, Addresses: b.Addresses})
		}
	}
	return m
}

// admit puts the members in force.
func (a *Agent) admit(m knownPeers) {
	ids := make([]peer.ID, 0, len(m.Admitted))
	for _, p := range m.Admitted {
		id, err := peer.Decode(p.ID)
		if err != nil {
			a.log.Warn("the ID of an admitted peer is not valid", "peer", p.ID, "error", err)
			continue
		}
		ids = append(ids, id)
	}
	a.opts.Swarm.SetAdmitted(ids)
	a.opts.Swarm.SetBootstrap(bootstrapOf(a.opts.Swarm.ID(), m))
	a.metrics.admitted.Set(float64(len(ids)))
	a.admission.Store(true)
}

// bootstrapOf are the peers that self starts from: the published set, and a few of the other members, which are chosen
// by rendezvous so that they stay the same while members come and go.
func bootstrapOf(self peer.ID, m knownPeers) []peer.AddrInfo {
	var infos []peer.AddrInfo
	add := func(p knownPeer) bool {
		info, err := p.info()
		if err != nil || info.ID == self || slices.ContainsFunc(infos, func(i peer.AddrInfo) bool {
			return i.ID == info.ID
		}) {
			return false
		}
		infos = append(infos, info)
		return true
	}
	for _, p := range m.Bootstrap {
		add(p)
	}
	type ranked struct {
		knownPeer
		rank [sha256.Size]byte
	}
	others := make([]ranked, len(m.Admitted))
	for i, p := range m.Admitted {
		others[i] = ranked{p, sha256.Sum256([]byte(string(self) + p.ID))}
	}
	slices.SortFunc(others, func(a, b ranked) int { return bytes.Compare(a.rank[:], b.rank[:]) })
	extra := 0
	for _, p := range others {
		if extra == extraBootstrap {
			break
		}
		if add(p.knownPeer) {
			extra++
		}
	}
	return infos
}

func (p knownPeer) info() (peer.AddrInfo, error) {
	id, err := peer.Decode(p.ID)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	info := peer.AddrInfo{ID: id}
	for _, s := range p.Addresses {
		if addr, err := ma.NewMultiaddr(s); err == nil {
			info.Addrs = append(info.Addrs, addr)
		}
	}
	return info, nil
}
