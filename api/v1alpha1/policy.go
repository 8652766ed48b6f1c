package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CachePolicy says how the caches of matching nodes behave. Where several match a node they are merged field by field:
// see Effective for the rule. Agents merge by themselves, so policy holds with no operator.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=cpol,categories=shoal
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.matchedNodes`
// +kubebuilder:printcolumn:name="Applied",type=integer,JSONPath=`.status.appliedNodes`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Conflicting",type=string,JSONPath=`.status.conditions[?(@.type=="Conflicting")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CachePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	Spec   CachePolicySpec   `json:"spec,omitempty"`
	Status CachePolicyStatus `json:"status,omitempty"`
}

// CachePolicyList is a list of CachePolicy.
//
// +kubebuilder:object:root=true
type CachePolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CachePolicy `json:"items"`
}

// CachePolicySpec is what the administrator asks of matching nodes. A field that is left out is decided by the next
// policy in order, at last by the agent's defaults.
type CachePolicySpec struct {
	// NodeSelector selects nodes by label. Empty: all nodes.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Priority orders the policies that match one node: the highest decides. Of equal priorities, the policy whose
	// name sorts first decides, and a disagreement shows in the condition Conflicting of both.
	// +optional
	// +kubebuilder:validation:Minimum=-1000
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`
	// Storage bounds the cache's disk space.
	// +optional
	Storage *StoragePolicy `json:"storage,omitempty"`
	// Bandwidth bounds what the agent exchanges with peers. What it reads from registries is bounded by the rules.
	// +optional
	Bandwidth *BandwidthPolicy `json:"bandwidth,omitempty"`
	// Rules say how repositories are served. The first rule that matches a repository decides, those of the
	// policy that comes first before those of the next.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Rules []RepositoryRule `json:"rules,omitempty"`
}

// EvictionAlgorithm says which unpinned blobs go first.
// +kubebuilder:validation:Enum=LRU;SLRU
type EvictionAlgorithm string

const (
	// EvictLRU evicts what was used least recently.
	EvictLRU EvictionAlgorithm = "LRU"
	// EvictSLRU, the segmented LRU, evicts what was used only once before what was used again, each least recently used
	// first, so that a burst of images that are pulled once does not drive out the daily ones (Karedla, Love and
	// Wherry, Caching Strategies to Improve Disk System Performance, 1994).
	EvictSLRU EvictionAlgorithm = "SLRU"
)

// StoragePolicy bounds the cache's disk space.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.capacity) && has(self.capacityPercent))",message="set capacity (bytes) or capacityPercent (share of the disk), not both"
// +kubebuilder:validation:XValidation:rule="!(has(self.modelCapacity) && has(self.modelCapacityPercent))",message="set modelCapacity (bytes) or modelCapacityPercent (share of the disk), not both"
// +kubebuilder:validation:XValidation:rule="!has(self.lowWatermarkPercent) || !has(self.highWatermarkPercent) || self.lowWatermarkPercent < self.highWatermarkPercent",message="lowWatermarkPercent must be below highWatermarkPercent: eviction starts at the high one and ends at the low one"
// +kubebuilder:validation:XValidation:rule="has(self.lowWatermarkPercent) == has(self.highWatermarkPercent)",message="set lowWatermarkPercent and highWatermarkPercent together"
// +kubebuilder:validation:XValidation:rule="!(has(self.minFree) && has(self.minFreePercent))",message="set minFree (bytes) or minFreePercent (share of the disk), not both"
// +kubebuilder:validation:XValidation:rule="(has(self.capacityPercent) ? self.capacityPercent : 0) + (has(self.modelCapacityPercent) ? self.modelCapacityPercent : 0) + (has(self.minFreePercent) ? self.minFreePercent : 0) <= 100",message="modelCapacityPercent, capacityPercent and minFreePercent together exceed the disk (100)"
type StoragePolicy struct {
	// Capacity of the cache in bytes. Default: the agent's `store.capacity`.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="capacity is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).isGreaterThan(quantity('0')) && quantity(string(self)).isLessThan(quantity('8Ei'))",message="capacity must be above 0 and below 8Ei, such as 50Gi"
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// CapacityPercent is the capacity as a share of the disk that holds the cache.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=95
	CapacityPercent *int32 `json:"capacityPercent,omitempty"`
	// ModelCapacity is how many bytes the files of model hubs may use beside the capacity, so that images and models do
	// not evict each other. 0: they share the capacity. Default: the agent's `store.modelCapacity`.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="modelCapacity is a number with a unit of Kubernetes, such as 500G or 500Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).isLessThan(quantity('8Ei'))",message="modelCapacity must be from 0 to below 8Ei, such as 500Gi"
	ModelCapacity *resource.Quantity `json:"modelCapacity,omitempty"`
	// ModelCapacityPercent is the same as a share of the disk that holds the cache.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=95
	ModelCapacityPercent *int32 `json:"modelCapacityPercent,omitempty"`
	// HighWatermarkPercent of either capacity starts eviction. Default: 95.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	HighWatermarkPercent *int32 `json:"highWatermarkPercent,omitempty"`
	// LowWatermarkPercent of either capacity ends eviction. Default: 85.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=99
	LowWatermarkPercent *int32 `json:"lowWatermarkPercent,omitempty"`
	// MinFree is the floor of free bytes on the disk; below it the agent evicts, and takes nothing in.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="minFree is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).isLessThan(quantity('8Ei'))",message="minFree must be from 0 to below 8Ei, such as 50Gi"
	MinFree *resource.Quantity `json:"minFree,omitempty"`
	// MinFreePercent is the floor as a share of the disk. Default: 5.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=99
	MinFreePercent *int32 `json:"minFreePercent,omitempty"`
	// Eviction says which unpinned blobs go first. Default: LRU.
	// +optional
	Eviction *EvictionAlgorithm `json:"eviction,omitempty"`
}

// BandwidthPolicy bounds transfer rates in bytes per second.
type BandwidthPolicy struct {
	// Upload to peers in bytes per second. Default: no limit.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="upload is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0 && quantity(string(self)).isLessThan(quantity('8Ei'))",message="upload must be at least 64Ki bytes per second, and below 8Ei"
	Upload *resource.Quantity `json:"upload,omitempty"`
	// Download from peers in bytes per second. Default: no limit.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="download is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0 && quantity(string(self)).isLessThan(quantity('8Ei'))",message="download must be at least 64Ki bytes per second, and below 8Ei"
	Download *resource.Quantity `json:"download,omitempty"`
}

// RepositoryMode says where the bytes of a repository may come from.
// +kubebuilder:validation:Enum=PullThrough;PeersOnly;Bypass
type RepositoryMode string

const (
	// ModePullThrough takes bytes from peers, and from upstream what no peer has.
	ModePullThrough RepositoryMode = "PullThrough"
	// ModePeersOnly never asks upstream for bytes.
	ModePeersOnly RepositoryMode = "PeersOnly"
	// ModeBypass sends the runtime to the registry: nothing is cached.
	ModeBypass RepositoryMode = "Bypass"
)

// AuthorizationMode says who may read what is cached of a repository.
// +kubebuilder:validation:Enum=Registry;Exempt
type AuthorizationMode string

const (
	// AuthorizeRegistry serves a caller whose credentials the registry has accepted within the TTL.
	AuthorizeRegistry AuthorizationMode = "Registry"
	// AuthorizeExempt serves every caller on the node.
	AuthorizeExempt AuthorizationMode = "Exempt"
)

// UnreachableMode says what holds of authorization while the registry can't be asked.
// +kubebuilder:validation:Enum=Deny;Remembered
type UnreachableMode string

const (
	// UnreachableDeny refuses callers whose acceptance is older than the TTL.
	UnreachableDeny UnreachableMode = "Deny"
	// UnreachableRemembered serves a caller that the registry accepted last, however long ago.
	UnreachableRemembered UnreachableMode = "Remembered"
)

// RepositoryRule says how matching repositories are served.
//
// +kubebuilder:validation:XValidation:rule="!has(self.mode) || self.mode != 'Bypass' || !(has(self.tagTTL) || has(self.authorization) || has(self.rateLimit))",message="mode Bypass caches nothing, so tagTTL, authorization and rateLimit have no meaning beside it: remove them"
type RepositoryRule struct {
	// Match is a list of patterns of host/path, any of which may match. "*" stands for any run of characters
	// within one part of the path, "**" for any run of parts: "registry.example/team-*/**", "docker.io/**".
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self.all(p, p.matches('^([[][a-fA-F0-9:]+[]]|[a-zA-Z0-9*._-]+)(:[0-9*]+)?(/[a-zA-Z0-9*._-]+)*$') && !p.contains('***'))",message="match holds patterns of host/path such as 'registry.example/team-*/**' or '[::1]:5000/**': letters, digits, '.', '_', '-' and '*' in each part, with no scheme, tag or digest"
	// +kubebuilder:validation:XValidation:rule="self.all(p, p.split('/')[0].matches('[.:*]|^localhost$'))",messageExpression="'match names a registry first, which ' + self.filter(p, !p.split('/')[0].matches('[.:*]|^localhost$'))[0] + ' does not, so it matches nothing: write docker.io/library/redis for what is called redis, docker.io/team/app for team/app'"
	// +kubebuilder:validation:XValidation:rule="self.all(p, p.contains('/') || p.contains('**') || !p.matches('[.:*]|^localhost$'))",messageExpression="'match is host and path, and ' + self.filter(p, !(p.contains('/') || p.contains('**') || !p.matches('[.:*]|^localhost$')))[0] + ' has no path, so it matches nothing: add /** for everything there'"
	// +kubebuilder:validation:XValidation:rule="self.all(p, !p.lowerAscii().matches('^(docker[.]io/([*]?[^/*]+)*[*]?$|(index|registry-1)[.]docker[.]io(/|$))'))",message="match knows Docker Hub as docker.io and its images by two parts, or it matches nothing: write docker.io/library/redis, docker.io/team/app or docker.io/**"
	Match []string `json:"match"`
	// Mode says where bytes may come from. Default: PullThrough.
	// +optional
	Mode *RepositoryMode `json:"mode,omitempty"`
	// TagTTL is how long a tag's digest is answered without asking upstream. "0s" asks every time.
	// Default: 1m.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="tagTTL must be between 0s and 720h, written as 90s, 10m or 24h: there is no unit for days"
	TagTTL *metav1.Duration `json:"tagTTL,omitempty"`
	// Authorization says who may read what is cached.
	// +optional
	Authorization *AuthorizationPolicy `json:"authorization,omitempty"`
	// RateLimit bounds what one node asks of the registry for the repositories that the rule matches, together.
	// +optional
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
}

// AuthorizationPolicy says who may read what is cached of a repository.
//
// +kubebuilder:validation:XValidation:rule="!has(self.mode) || self.mode != 'Exempt' || !(has(self.ttl) || has(self.onUnreachable))",message="mode Exempt asks no registry, so ttl and onUnreachable have no meaning beside it: remove them"
type AuthorizationPolicy struct {
	// Mode says whether the registry has to accept a caller. Default: Registry.
	// +optional
	Mode *AuthorizationMode `json:"mode,omitempty"`
	// TTL is how long the registry's acceptance of a caller's credentials is remembered. Default: 5m.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="ttl must be between 0s and 720h, written as 90s, 10m or 24h: there is no unit for days"
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// OnUnreachable says who may read while the registry cannot be asked. Default: Remembered.
	// +optional
	OnUnreachable *UnreachableMode `json:"onUnreachable,omitempty"`
}

// RateLimit bounds what one node asks of a registry.
//
// +kubebuilder:validation:XValidation:rule="has(self.requestsPerSecond) || has(self.bytesPerSecond) || has(self.connections)",message="rateLimit is empty: set requestsPerSecond, bytesPerSecond or connections"
type RateLimit struct {
	// RequestsPerSecond is the number of requests, of whatever kind, to the registry. Default: no limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	RequestsPerSecond *int32 `json:"requestsPerSecond,omitempty"`
	// BytesPerSecond is how fast the node reads from the registry. What peers have is not slowed down by it.
	// Default: no limit.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="bytesPerSecond is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0 && quantity(string(self)).isLessThan(quantity('8Ei'))",message="bytesPerSecond must be at least 64Ki, and below 8Ei"
	BytesPerSecond *resource.Quantity `json:"bytesPerSecond,omitempty"`
	// Connections is the most requests that the node has under way at one time, at each registry that the rule matches;
	// others wait. What a token server or a hub's listings are asked is not counted. The node then reads this many
	// parts of blobs at one time, in place of 8; more suit a registry that gives each connection little. It is the
	// node's own bound. How many parts of one blob all nodes together read at one time is another matter, and their
	// coordinator's. Default: no limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	Connections *int32 `json:"connections,omitempty"`
}

// CachePolicyStatus is written by the operator alone. Agents need none of it.
type CachePolicyStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// MatchedNodes is the number of nodes with an agent that the selector matches.
	// +optional
	MatchedNodes int32 `json:"matchedNodes"`
	// AppliedNodes is the number of those whose agent reports that it runs with the policies as they stand.
	// +optional
	AppliedNodes int32 `json:"appliedNodes"`
	// Conflicts with other policies of the same priority.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Conflicts []PolicyConflict `json:"conflicts,omitempty"`
	// Conditions: Ready, Conflicting.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PolicyConflict is a field that two policies of equal priority decide differently for the same node.
type PolicyConflict struct {
	// Policy is the other policy.
	Policy string `json:"policy"`
	// Field that both set, as a path within spec.
	Field string `json:"field"`
	// Wins reports whether this policy's value is the one in force.
	Wins bool `json:"wins"`
}
