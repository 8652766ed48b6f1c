package v1alpha1

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// MaxPinsPerNode bounds the pins that one node is told to keep. With MaxPinBytesPerNode it keeps a NodeCache below
	// etcd's limit of 1.5 MiB an object, with the agent's status and what the API server notes of who wrote which
	// field.
	MaxPinsPerNode = 512
	// MaxPinBytesPerNode bounds the JSON of all entries of one node's NodeCache.spec.pins together: some 1,500
	// artifacts, or fewer where there are referrers.
	MaxPinBytesPerNode = 600 << 10
)

// NodeCache is what one node's cache is told to keep (spec, by the operator alone) and what it holds (status, by the
// node's agent alone), named like the node. The agent watches its own NodeCache and no other; the operator makes it
// when it admits the peer. A NodeCache that is missing releases nothing: the agent then keeps the pins it
// remembers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=shoal
// +kubebuilder:printcolumn:name="Pins",type=string,JSONPath=`.status.summary.pins`
// +kubebuilder:printcolumn:name="Used",type=string,JSONPath=`.status.summary.used`
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.summary.capacity`
// +kubebuilder:printcolumn:name="Pinned",type=string,JSONPath=`.status.summary.pinned`,priority=1
// +kubebuilder:printcolumn:name="Hits",type=string,JSONPath=`.status.summary.hits`
// +kubebuilder:printcolumn:name="From peers",type=string,JSONPath=`.status.summary.fromPeers`
// +kubebuilder:printcolumn:name="From registry",type=string,JSONPath=`.status.summary.fromUpstream`
// +kubebuilder:printcolumn:name="Saved",type=string,JSONPath=`.status.summary.saved`
// +kubebuilder:printcolumn:name="Mirror",type=string,JSONPath=`.status.conditions[?(@.type=="MirrorConfigured")].reason`
// +kubebuilder:printcolumn:name="Policy",type=string,JSONPath=`.status.conditions[?(@.type=="PolicyApplied")].reason`,priority=1
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`,priority=1
// +kubebuilder:printcolumn:name="Reported",type=date,JSONPath=`.status.reportedAt`
type NodeCache struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	Spec   NodeCacheSpec   `json:"spec,omitempty"`
	Status NodeCacheStatus `json:"status,omitempty"`
}

// NodeCacheList is a list of NodeCache.
//
// +kubebuilder:object:root=true
type NodeCacheList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeCache `json:"items"`
}

// NodeCacheSpec is written by the operator alone.
type NodeCacheSpec struct {
	// Pins are what this node is to keep, whole, until the entry goes away.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=512
	Pins []PinAssignment `json:"pins,omitempty"`
}

// AssignmentAction is what a node is to do about a pin.
// +kubebuilder:validation:Enum=Keep;Purge
type AssignmentAction string

const (
	// ActionKeep has the node fetch the artifacts and keep them.
	ActionKeep AssignmentAction = "Keep"
	// ActionPurge has the node remove the artifacts, but for blobs that another pin of the node keeps. The agent
	// reports PinPurged when it is done.
	ActionPurge AssignmentAction = "Purge"
)

// PinAssignment is one pin's share for one node. It is complete in itself, so that the agent needs to read no
// ArtifactPin.
type PinAssignment struct {
	// UID of the ArtifactPin.
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Revision changes whenever anything else in this entry does. The agent reports for which revision its words hold.
	// +kubebuilder:validation:MaxLength=32
	Revision string `json:"revision"`
	// +kubebuilder:default=Keep
	Action AssignmentAction `json:"action,omitempty"`
	// DeletionPolicy says what the operator does about this entry when the pin has gone. It stands here because nothing
	// else of the pin is left then. Empty: Keep.
	// +optional
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
	// Artifacts to keep. An artifact that has left the list is released.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Artifacts []AssignedArtifact `json:"artifacts,omitempty"`
	// Platforms of each index to keep, as os/arch[/variant]. Empty: the node's own. "*": all.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=64
	Platforms []string `json:"platforms,omitempty"`
	// Target: keep in the cache alone, or also load images into the node's container runtime.
	// +kubebuilder:default=Cache
	Target PinTarget `json:"target,omitempty"`
	// PullSecrets are names of Secrets in Namespace with registry credentials, tried in order. The agent reads them
	// when it fetches and stores them nowhere.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	PullSecrets []string `json:"pullSecrets,omitempty"`
	// Priority orders what the agent fetches first: the higher, the sooner.
	// +optional
	Priority int32 `json:"priority,omitempty"`
	// Bandwidth bounds the node's download of this pin in bytes per second. Empty: no bound of its own.
	// +optional
	Bandwidth *resource.Quantity `json:"bandwidth,omitempty"`
	// SizeLimit bounds the bytes of all artifacts together. Beyond it the agent reports SizeLimitExceeded.
	// +optional
	SizeLimit *resource.Quantity `json:"sizeLimit,omitempty"`
	// TimeLimit bounds one attempt to fetch the pin; then the agent reports TimedOut and backs off.
	// +optional
	TimeLimit *metav1.Duration `json:"timeLimit,omitempty"`
	// Backoff is the pause between attempts.
	// +optional
	Backoff *Backoff `json:"backoff,omitempty"`
}

// AssignedArtifact is one artifact of a PinAssignment. The agent keeps its whole closure: of an index the manifests
// of the chosen platforms, of each manifest its config and layers; of a digest or CID that is no manifest, the blob; of
// a hub's repository the files and what the hub tells of them.
type AssignedArtifact struct {
	// Repository that has the artifact, as host/path. Empty: none is known, only peers can be asked.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Repository string `json:"repository,omitempty"`
	// Tag under which the artifact was found, empty where the pin names a digest. The agent remembers it as the
	// newest answer for the tag, and names the image so in the runtime where the target asks for it.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Tag string `json:"tag,omitempty"`
	// Digest of the root. Empty only where CID is given and does not translate to a digest.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Digest string `json:"digest,omitempty"`
	// CID of the root where the pin names a CID that does not translate to a digest (a UnixFS DAG).
	// +optional
	// +kubebuilder:validation:MaxLength=128
	CID string `json:"cid,omitempty"`
	// MediaType of the root where it is known. Empty: a blob unless the repository has a manifest of that digest.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	MediaType string `json:"mediaType,omitempty"`
	// Hub says that the artifact is files of a model hub's repository, which Repository names as host/name.
	// +optional
	Hub *ResolvedHub `json:"hub,omitempty"`
	// Referrers are digests of manifests in Repository that refer to the root (signatures, SBOMs), to keep as well.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=256
	Referrers []string `json:"referrers,omitempty"`
}

// NodeCacheStatus is written by the node's agent alone, in the mean at most once per ReportInterval but for the ends of
// pins, and at least once per HeartbeatInterval.
type NodeCacheStatus struct {
	// ReportedAt is when the agent last wrote this status.
	// +optional
	ReportedAt *metav1.Time `json:"reportedAt,omitempty"`
	// Version of the agent.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Version string `json:"version,omitempty"`
	// PolicyRevision identifies the effective policy that the agent runs with (EffectivePolicy.Revision).
	// +optional
	// +kubebuilder:validation:MaxLength=32
	PolicyRevision string `json:"policyRevision,omitempty"`
	// Usage of the cache's disk space.
	// +optional
	Usage CacheUsage `json:"usage,omitempty"`
	// Counters since the node's cache was made. They survive restarts of the agent.
	// +optional
	Counters CacheCounters `json:"counters,omitempty"`
	// Summary is what people read of all this, sizes in GiB.
	// +optional
	Summary CacheSummary `json:"summary,omitzero"`
	// PinsReady is the number of entries of Pins that are Ready.
	// +optional
	// +kubebuilder:validation:Minimum=0
	PinsReady int32 `json:"pinsReady"`
	// Pins is the progress of each entry of spec.pins, PinPurged for entries that were to be purged, and that of what
	// the node keeps though this NodeCache, which was made anew, has never listed it.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=512
	Pins []PinProgress `json:"pins,omitempty"`
	// Conditions: MirrorConfigured, PolicyApplied, PinsReady, StoreUsable; ModelsFit where the hub front is on.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// CacheSummary is a NodeCache as kubectl prints it: the same unit in every line of a column.
type CacheSummary struct {
	// Pins that are ready, of those the node is to keep, as 2/2.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Pins string `json:"pins,omitempty"`
	// Hits are requests that the node's own disk answered, of all, as 75%.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Hits string `json:"hits,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Used string `json:"used,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Capacity string `json:"capacity,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Pinned string `json:"pinned,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	FromPeers string `json:"fromPeers,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	FromUpstream string `json:"fromUpstream,omitempty"`
	// Saved were given to the node's workloads and not read from a registry for them.
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Saved string `json:"saved,omitempty"`
}

// GiB writes bytes in GiB, so that a column of sizes has one unit.
func GiB(bytes int64) string { return fmt.Sprintf("%.2fGiB", float64(bytes)/(1<<30)) }

// Percent writes a part of a whole, of 0% to 100%; empty where there is no whole. Sums of what agents report may have
// overflowed.
func Percent(part, whole int64) string {
	if whole <= 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", 100*float64(min(max(part, 0), whole))/float64(whole))
}

// CacheUsage is the disk space of a node's cache in bytes.
type CacheUsage struct {
	// Bytes that the cache holds.
	// +optional
	Bytes *resource.Quantity `json:"bytes,omitempty"`
	// Capacity that the effective policy gives the cache on this node.
	// +optional
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// ModelCapacity is the part of Capacity that is for files of model hubs and nothing else. Absent: they share the
	// capacity with images.
	// +optional
	ModelCapacity *resource.Quantity `json:"modelCapacity,omitempty"`
	// PinnedBytes are those of Bytes that pins keep.
	// +optional
	PinnedBytes *resource.Quantity `json:"pinnedBytes,omitempty"`
	// Blobs is the number of whole blobs.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Blobs int64 `json:"blobs,omitempty"`
}

// CacheCounters count what the agents of a node did.
type CacheCounters struct {
	// Hits are container runtimes' requests that this node's disk answered alone.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Hits int64 `json:"hits"`
	// Misses are such requests that took bytes from peers or upstream. What pins take is none.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Misses int64 `json:"misses"`
	// PeerBytes were taken from peers.
	// +optional
	PeerBytes *resource.Quantity `json:"peerBytes,omitempty"`
	// UpstreamBytes were taken from registries.
	// +optional
	UpstreamBytes *resource.Quantity `json:"upstreamBytes,omitempty"`
	// UploadedBytes were given to peers.
	// +optional
	UploadedBytes *resource.Quantity `json:"uploadedBytes,omitempty"`
	// SavedBytes were given to the node's workloads and not read from a registry for them.
	// +optional
	SavedBytes *resource.Quantity `json:"savedBytes,omitempty"`
}

// PinState is how far a node is with a pin.
// +kubebuilder:validation:Enum=Pending;Fetching;Ready;Failed;Purged
type PinState string

const (
	// PinPending: the agent has seen the entry and has not begun.
	PinPending PinState = "Pending"
	// PinFetching: bytes are arriving.
	PinFetching PinState = "Fetching"
	// PinReady: every blob is held whole, and in the runtime too where the target asks for it.
	PinReady PinState = "Ready"
	// PinFailed: the last attempt failed with Reason; another follows after the back-off.
	PinFailed PinState = "Failed"
	// PinPurged: the entry's action was Purge and its blobs are gone from the node.
	PinPurged PinState = "Purged"
)

// ReasonUnlisted of a PinProgress: an earlier NodeCache of the node listed the pin, and this one never has. The node
// keeps it as it was until it is listed, and so until the operator says to keep it or to let it go. Where it fails, the
// message begins with the reason of that.
const ReasonUnlisted = "Unlisted"

// LetsGo reports whether the entry is there to say that the node is to let go of a pin that it reports as Unlisted. It
// lists nothing to keep, and goes once the node has reported it Ready.
func (a *PinAssignment) LetsGo() bool { return a.Action == ActionKeep && len(a.Artifacts) == 0 }

// PinProgress is how far one node is with one pin.
type PinProgress struct {
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// Revision of the entry that the rest is about.
	// +kubebuilder:validation:MaxLength=32
	Revision string   `json:"revision"`
	State    PinState `json:"state"`
	// HeldRevision is an earlier revision of the entry whose artifacts the node still holds whole, because those of
	// Revision are not all there yet. Empty where nothing earlier is held whole.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	HeldRevision string `json:"heldRevision,omitempty"`
	// Reason of a failure, one of the Fetch… reasons; or Unlisted.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason,omitempty"`
	// Message for a person: what was attempted, on what, and what came of it.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message,omitempty"`
	// BytesHeld of BytesWanted. BytesWanted is 0 until the manifests have been read.
	// +optional
	// +kubebuilder:validation:Minimum=0
	BytesHeld int64 `json:"bytesHeld"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	BytesWanted int64 `json:"bytesWanted"`
	// LastUsed is when a workload of this node last pulled any artifact of the pin, to the hour, so that use alone
	// makes few writes.
	// +optional
	LastUsed *metav1.Time `json:"lastUsed,omitempty"`
}
