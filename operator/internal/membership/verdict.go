// Package membership admits peers, retires those whose node is gone, and publishes the swarm: its size and where to
// start.
package membership

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// Facts are what a verdict about a peer rests on.
type Facts struct {
	Peer *v1alpha1.Peer
	// Node of the peer's name, nil if there is none.
	Node *corev1.Node
	// Swarm "default", nil if there is none.
	Swarm *v1alpha1.Swarm
	// SamePeerID are the other Peers that claim the same peer ID.
	SamePeerID []v1alpha1.Peer
}

// Verdict says whether a peer may join, and why.
type Verdict struct {
	Admitted        bool
	Reason, Message string
}

// rule finds a reason to refuse a peer.
type rule func(Facts) (reason, message string, refused bool)

// rules in the order in which they are asked; the first that refuses decides.
var rules = []rule{nodeExists, proofHolds, addressesParse, peerIDIsUnique, notDenied, nodeIsSelected, swarmIsOpen}

// Judge decides about a peer.
func Judge(f Facts) Verdict {
	for _, r := range rules {
		if reason, message, refused := r(f); refused {
			return Verdict{Reason: reason, Message: message}
		}
	}
	return Verdict{Admitted: true, Reason: v1alpha1.ReasonNodeVerified,
		Message: fmt.Sprintf("node %s exists, and its agent holds the key of the peer ID", f.Peer.Spec.NodeName)}
}

func nodeExists(f Facts) (string, string, bool) {
	return v1alpha1.ReasonNodeNotFound, fmt.Sprintf("there is no Node %s", f.Peer.Name), f.Node == nil
}

func proofHolds(f Facts) (string, string, bool) {
	refuse := func(message string) (string, string, bool) { return v1alpha1.ReasonInvalidProof, message, true }
	id, err := peer.Decode(f.Peer.Spec.PeerID)
	if err != nil {
		return refuse(fmt.Sprintf("peer ID %s can't be decoded: %v", f.Peer.Spec.PeerID, err))
	}
	key, err := id.ExtractPublicKey()
	if err != nil {
		return refuse("the peer ID does not contain its public key: give the agent an Ed25519 identity")
	}
	ok, err := key.Verify(v1alpha1.ProofMessage(f.Peer.Spec.NodeName), f.Peer.Spec.Proof)
	if err != nil || !ok {
		return refuse("proof is not the signature of this node's name by the key of the peer ID")
	}
	return "", "", false
}

func addressesParse(f Facts) (string, string, bool) {
	for _, a := range f.Peer.Spec.Addresses {
		if _, err := multiaddr.NewMultiaddr(a); err != nil {
			return v1alpha1.ReasonInvalidAddress, fmt.Sprintf("address %q is no multiaddr: %v", a, err), true
		}
	}
	return "", "", false
}

// peerIDIsUnique lets the peer that was admitted first keep its ID. Were two admitted at once, the older one keeps it.
func peerIDIsUnique(f Facts) (string, string, bool) {
	for i := range f.SamePeerID {
		other := &f.SamePeerID[i]
		if !other.IsAdmitted() || other.Name == f.Peer.Name {
			continue
		}
		if f.Peer.IsAdmitted() && older(f.Peer, other) {
			continue
		}
		return v1alpha1.ReasonDuplicatePeerID,
			fmt.Sprintf("node %s joined with the same peer ID: "+
				"was a disk cloned? Remove the agent's identity on one of the two nodes", other.Name), true
	}
	return "", "", false
}

func older(a, b *v1alpha1.Peer) bool {
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.Name < b.Name
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}

func notDenied(f Facts) (string, string, bool) {
	return v1alpha1.ReasonDenied, "Swarm.spec.admission.denyNodes names this node",
		f.Swarm != nil && slices.Contains(f.Swarm.Spec.Admission.DenyNodes, f.Peer.Name)
}

func nodeIsSelected(f Facts) (string, string, bool) {
	if f.Swarm == nil {
		return "", "", false
	}
	ok, err := v1alpha1.Selects(f.Swarm.Spec.Admission.NodeSelector, f.Node.Labels)
	if err != nil {
		return v1alpha1.ReasonInvalidSelector, fmt.Sprintf("Swarm.spec.admission.nodeSelector: %v", err),
			!f.Peer.IsAdmitted()
	}
	return v1alpha1.ReasonNodeNotSelected, "Swarm.spec.admission.nodeSelector does not match this node", !ok
}

// swarmIsOpen refuses newcomers only: that the Swarm is frozen, or gone, puts no one out.
func swarmIsOpen(f Facts) (string, string, bool) {
	switch {
	case f.Peer.IsAdmitted():
		return "", "", false
	case f.Swarm == nil:
		return v1alpha1.ReasonNoSwarm, fmt.Sprintf("there is no Swarm %q: the chart makes it", v1alpha1.SwarmName), true
	default:
		return v1alpha1.ReasonAdmissionFrozen,
			"Swarm.spec.admission.mode is Frozen: set it to Nodes to admit new peers",
			f.Swarm.Spec.Admission.Mode == v1alpha1.AdmitFrozen
	}
}
