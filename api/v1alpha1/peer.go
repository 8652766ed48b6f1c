package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Peer is one node's agent as a member of the swarm, named like the node. The agent writes metadata and spec of its own
// Peer and no other; the operator alone writes the status. Every agent watches every Peer, so a Peer changes
// only when the peer itself does; what changes with every pull is in NodeCache.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=shoal
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.nodeName",message="a Peer is named like its node: metadata.name and spec.nodeName must be the same"
// +kubebuilder:printcolumn:name="Admitted",type=boolean,JSONPath=`.status.admitted`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Admitted")].reason`
// +kubebuilder:printcolumn:name="Zone",type=string,JSONPath=`.spec.zone`
// +kubebuilder:printcolumn:name="Peer ID",type=string,JSONPath=`.spec.peerID`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Peer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PeerSpec   `json:"spec"`
	Status PeerStatus `json:"status,omitempty"`
}

// PeerList is a list of Peer.
//
// +kubebuilder:object:root=true
type PeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Peer `json:"items"`
}

// PeerSpec is what an agent says of itself.
type PeerSpec struct {
	// NodeName is the node on which the agent runs.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// PeerID is the agent's libp2p peer ID in its base58 form.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^(12D3KooW|16Uiu2HA|Qm)[1-9A-HJ-NP-Za-km-z]{40,60}$')",message="peerID is not a libp2p peer ID in base58, such as 12D3KooW…"
	PeerID string `json:"peerID"`
	// Addresses are the multiaddrs that other peers dial, without the /p2p part.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.all(a, a.startsWith('/') && !a.contains('/p2p/'))",message="addresses are multiaddrs without the /p2p part, such as /ip4/10.0.0.7/tcp/4001"
	// +listType=atomic
	Addresses []string `json:"addresses"`
	// Zone is the value of the node label that Swarm.spec.zoneKey names, empty where the node has none. Agents
	// use it to keep traffic within a zone. The operator goes by the Node's label, not by this.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Zone string `json:"zone,omitempty"`
	// Proof is the signature of ProofMessage(nodeName) by the key of the peer ID. It keeps one node's agent from
	// claiming the peer ID of another's.
	// +kubebuilder:validation:MinLength=16
	// +kubebuilder:validation:MaxLength=1024
	Proof []byte `json:"proof"`
}

// PeerStatus is written by the operator alone.
type PeerStatus struct {
	// ObservedGeneration is the generation of the spec that this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Admitted reports whether agents may open streams to and accept streams from AdmittedPeerID. The connection
	// gater of every agent enforces it.
	// +optional
	Admitted bool `json:"admitted"`
	// AdmittedPeerID is the peer ID that the verdict is about. It differs from spec.peerID while a change of
	// the spec has not been judged yet; then neither of the two may be let in on the strength of this status.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	AdmittedPeerID string `json:"admittedPeerID,omitempty"`
	// Conditions: Admitted.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IsAdmitted reports whether the operator has admitted the peer under the peer ID that it now claims.
func (p *Peer) IsAdmitted() bool {
	return p.DeletionTimestamp == nil && p.Status.Admitted && p.Status.AdmittedPeerID == p.Spec.PeerID
}

// ProofMessage is what an agent signs with its libp2p private key to make Peer.spec.proof: the node's name behind a
// prefix that no other protocol signs.
func ProofMessage(nodeName string) []byte {
	return []byte("shoal.dev/v1alpha1 peer of node:" + nodeName)
}
