package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SwarmName is the name of the one Swarm of a cluster.
const SwarmName = "default"

// Swarm is the set of agents that share content in this cluster. There is one, named "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=shoal
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="a cluster has one Swarm: name it 'default'"
// +kubebuilder:printcolumn:name="Members",type=integer,JSONPath=`.status.members`
// +kubebuilder:printcolumn:name="Live",type=string,JSONPath=`.status.summary.live`
// +kubebuilder:printcolumn:name="Zones",type=integer,JSONPath=`.status.zones`
// +kubebuilder:printcolumn:name="Hits",type=string,JSONPath=`.status.summary.hits`
// +kubebuilder:printcolumn:name="From peers",type=string,JSONPath=`.status.summary.fromPeers`
// +kubebuilder:printcolumn:name="From registry",type=string,JSONPath=`.status.summary.fromUpstream`
// +kubebuilder:printcolumn:name="Saved",type=string,JSONPath=`.status.summary.saved`
// +kubebuilder:printcolumn:name="Unmirrored",type=integer,JSONPath=`.status.summary.unmirrored`
// +kubebuilder:printcolumn:name="Down",type=string,JSONPath=`.status.down`,priority=1
// +kubebuilder:printcolumn:name="Registered",type=integer,JSONPath=`.status.registered`,priority=1
// +kubebuilder:printcolumn:name="Admission",type=string,JSONPath=`.spec.admission.mode`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Swarm struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	Spec   SwarmSpec   `json:"spec,omitempty"`
	Status SwarmStatus `json:"status,omitempty"`
}

// SwarmList is a list of Swarm.
//
// +kubebuilder:object:root=true
type SwarmList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Swarm `json:"items"`
}

// SwarmSpec is what the administrator asks of the swarm.
type SwarmSpec struct {
	// BootstrapPeers is the number of peers published for new agents to start from.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=50
	BootstrapPeers int32 `json:"bootstrapPeers,omitempty"`

	// Admission says which peers may join.
	// +kubebuilder:default={mode: Nodes}
	Admission Admission `json:"admission,omitzero"`

	// ZoneKey is the node label whose value is the node's zone.
	// +kubebuilder:default="topology.kubernetes.io/zone"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	ZoneKey string `json:"zoneKey,omitempty"`
}

// AdmissionMode is a rule for admitting peers.
// +kubebuilder:validation:Enum=Nodes;Frozen
type AdmissionMode string

const (
	// AdmitNodes admits the agent of every node that matches the node selector.
	AdmitNodes AdmissionMode = "Nodes"
	// AdmitFrozen keeps the peers that are admitted and admits no new one.
	AdmitFrozen AdmissionMode = "Frozen"
)

// Admission says which peers may join the swarm. Whatever it says, a peer is admitted only if a Node of its name exists
// and its proof shows that it holds the key of its peer ID.
type Admission struct {
	// Mode is Nodes (the agent of every selected node is admitted) or Frozen (no peer is admitted that is not yet).
	// +kubebuilder:default=Nodes
	Mode AdmissionMode `json:"mode,omitempty"`
	// NodeSelector limits admission to matching nodes. Empty: all nodes.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// DenyNodes are nodes whose peers are not admitted, whatever else holds: for an incident.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	DenyNodes []string `json:"denyNodes,omitempty"`
}

// SwarmStatus is written by the operator alone.
type SwarmStatus struct {
	// ObservedGeneration is the generation of the spec that this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Bootstrap is the set of peers to start from: admitted, live, spread over zones and ages. An agent that starts
	// dials them first, and those it remembers from its last run.
	// +optional
	// +listType=map
	// +listMapKey=nodeName
	// +kubebuilder:validation:MaxItems=50
	Bootstrap []BootstrapPeer `json:"bootstrap,omitempty"`
	// Members is the number of admitted peers.
	// +optional
	Members int32 `json:"members"`
	// Registered is the number of peers, admitted or not.
	// +optional
	Registered int32 `json:"registered"`
	// Live is the number of admitted peers whose node is Ready and that report, and Down names the others, the first 10
	// in order of name.
	// +optional
	Live int32 `json:"live"`
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=10
	// +kubebuilder:validation:items:MaxLength=253
	Down []string `json:"down,omitempty"`
	// Summary sums up what the nodes report.
	// +optional
	Summary SwarmSummary `json:"summary,omitzero"`
	// Zones is the number of zones that have an admitted peer.
	// +optional
	Zones int32 `json:"zones"`
	// Conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SwarmSummary sums up what the nodes report, as kubectl prints it, sizes in GiB. It follows their reports within about
// a minute.
type SwarmSummary struct {
	// Live of the admitted peers, as 2/3.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Live string `json:"live,omitempty"`
	// Hits are requests that were answered from the node's own disk, of all.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Hits string `json:"hits,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Used string `json:"used,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	FromPeers string `json:"fromPeers,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	FromUpstream string `json:"fromUpstream,omitempty"`
	// Saved were given to workloads and not read from a registry for them.
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Saved string `json:"saved,omitempty"`
	// Unmirrored is the number of nodes whose container runtime does not ask its agent.
	// +optional
	Unmirrored int32 `json:"unmirrored"`
}

// BootstrapPeer is a peer that a new agent starts from.
type BootstrapPeer struct {
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// +kubebuilder:validation:MaxLength=128
	PeerID string `json:"peerID"`
	// Addresses are multiaddrs without the /p2p part.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=256
	// +listType=atomic
	Addresses []string `json:"addresses"`
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Zone string `json:"zone,omitempty"`
}
