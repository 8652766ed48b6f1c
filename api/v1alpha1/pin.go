package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// AllNodes is the value of ArtifactPin.spec.replicas that asks for a copy on every eligible node.
const AllNodes = "All"

// ArtifactPin keeps artifacts in the cache: so many copies, spread so, for so long. A pinned artifact is never
// evicted, and a copy that is lost is made again.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=pin;pins,categories=shoal
// +kubebuilder:printcolumn:name="Desired",type=integer,JSONPath=`.status.desired`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Pending",type=integer,JSONPath=`.status.pending`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failed`
// +kubebuilder:printcolumn:name="Domains",type=integer,JSONPath=`.status.domains`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Artifact",type=string,JSONPath=`.status.summary`
// +kubebuilder:printcolumn:name="Held",type=string,JSONPath=`.status.held`,priority=1
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.status.wanted`,priority=1
// +kubebuilder:printcolumn:name="Upstream",type=string,JSONPath=`.status.conditions[?(@.type=="UpToDate")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ArtifactPin struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ArtifactPinSpec   `json:"spec"`
	Status ArtifactPinStatus `json:"status,omitempty"`
}

// ArtifactPinList is a list of ArtifactPin.
//
// +kubebuilder:object:root=true
type ArtifactPinList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ArtifactPin `json:"items"`
}

// ArtifactPinSpec says what to keep, where, how, and for how long.
//
// +kubebuilder:validation:XValidation:rule="has(self.artifacts) != has(self.workloads)",message="say what to pin: either artifacts (a list) or workloads (a selector of pods), and not both"
// +kubebuilder:validation:XValidation:rule="self.resolve.policy != 'Digest' || !has(self.artifacts) || self.artifacts.all(a, !has(a.image) || a.image.contains('@'))",message="resolve.policy Digest takes no tags: write every image as repository@sha256:…"
// +kubebuilder:validation:XValidation:rule="self.target != 'CacheAndRuntime' || !has(self.artifacts) || self.artifacts.all(a, has(a.image))",message="target CacheAndRuntime loads images into the container runtime: it takes artifacts given as image, not as digest, cid or hub"
// +kubebuilder:validation:XValidation:rule="self.resolve.policy != 'Digest' || !has(self.artifacts) || self.artifacts.all(a, !has(a.hub) || a.hub.revision.matches('^[0-9a-f]{40}$'))",message="resolve.policy Digest takes no branches or tags: write every hub.revision as a commit, of 40 hexadecimal digits"
// +kubebuilder:validation:XValidation:rule="!has(self.expiry) || !has(self.expiry.unusedFor) || !has(self.artifacts) || self.artifacts.all(a, !has(a.hub))",message="expiry.unusedFor counts pulls of images: for files of a hub set until or ttl"
// +kubebuilder:validation:XValidation:rule="!has(self.minReplicas) || type(self.replicas) != int || self.minReplicas <= int(self.replicas)",message="minReplicas must not exceed replicas"
// +kubebuilder:validation:XValidation:rule="!has(self.spread) || !has(self.spread.minDomains) || type(self.replicas) != int || self.spread.minDomains <= int(self.replicas)",message="spread.minDomains must not exceed replicas: so many copies can't cover so many domains"
type ArtifactPinSpec struct {
	// Artifacts to keep.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Artifacts []Artifact `json:"artifacts,omitempty"`
	// Workloads keeps the images of running pods of this namespace.
	// +optional
	Workloads *WorkloadSelector `json:"workloads,omitempty"`
	// Platforms of each image index to keep, as os/arch or os/arch/variant. Empty: the platform of the node that
	// keeps the copy. "*": all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(p, p == '*' || p.matches('^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9._]+)?$'))",message="platforms are written os/arch or os/arch/variant, such as linux/amd64 or linux/arm64/v8, or '*' for all"
	Platforms []string `json:"platforms,omitempty"`
	// Referrers says whether what refers to an artifact (signatures, SBOMs, attestations) is kept with it.
	// +kubebuilder:default=Exclude
	Referrers ReferrersPolicy `json:"referrers,omitempty"`
	// Resolve says when tags are turned into digests.
	// +kubebuilder:default={policy: Interval, interval: "1h"}
	Resolve ResolveSpec `json:"resolve,omitzero"`

	// Replicas is the number of copies: a count, a percentage of the eligible nodes such as "25%" (rounded up),
	// or "All".
	// +kubebuilder:default=3
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 1 && int(self) <= 5000 : string(self) == 'All' || string(self).matches('^([1-9][0-9]?|100)%$')",message="replicas is a count from 1 to 5000 without quotes, a percentage of nodes from \"1%\" to \"100%\", or \"All\"; to stop work without losing copies set suspend, to let the copies go delete the pin"
	Replicas intstr.IntOrString `json:"replicas,omitzero"`
	// MinReplicas is the number of ready copies below which the pin is Degraded. 1 where it is left out.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=5000
	MinReplicas *int32 `json:"minReplicas,omitempty"`
	// NodeSelector limits the copies to matching nodes. Empty: all nodes.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Tolerations let copies be kept on nodes with matching taints of effect NoSchedule or NoExecute. A node that is
	// cordoned or under pressure needs none to keep what it has; it is given nothing new.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:XValidation:rule="self.all(t, !has(t.operator) || t.operator in ['Exists', 'Equal'])",message="a toleration's operator is Exists or Equal"
	// +kubebuilder:validation:XValidation:rule="self.all(t, !has(t.effect) || t.effect in ['', 'NoSchedule', 'PreferNoSchedule', 'NoExecute'])",message="a toleration's effect is NoSchedule, PreferNoSchedule or NoExecute, or left out for all"
	// +kubebuilder:validation:XValidation:rule="self.all(t, has(t.key) && t.key != '' || has(t.operator) && t.operator == 'Exists')",message="a toleration without key tolerates every taint: write operator Exists beside it, or give the key"
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// Spread the copies evenly over the domains of a node label. Over Swarm.spec.zoneKey where it is left out.
	// +optional
	Spread *SpreadSpec `json:"spread,omitempty"`
	// Target: keep in the cache alone, or also load images into each node's container runtime, so that a pod
	// starts without any pull.
	// +kubebuilder:default=Cache
	Target PinTarget `json:"target,omitempty"`
	// Startup says whether nodes that start with the taint shoal.dev/starting keep it until this pin is ready on them,
	// for 10 minutes or timeLimit, whichever is longer, and for 30 minutes at most.
	// +kubebuilder:default=Ignore
	Startup StartupPolicy `json:"startup,omitempty"`

	// PullSecrets are Secrets of this namespace of type kubernetes.io/dockerconfigjson, tried in order.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(s, has(s.name) && s.name != '' && s.name.size() <= 253)",message="pullSecrets are names of Secrets, such as [{name: registry-login}]"
	PullSecrets []corev1.LocalObjectReference `json:"pullSecrets,omitempty"`
	// ServiceAccountName of this namespace whose imagePullSecrets are used after PullSecrets.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$')",message="serviceAccountName is the name of a ServiceAccount of the pin's namespace, such as builder"
	ServiceAccountName string `json:"serviceAccountName,omitempty"`
	// Priority orders pins: nodes fetch the higher first, and a node that can't take all leaves out the lower.
	// +optional
	// +kubebuilder:validation:Minimum=-1000
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`
	// Parallelism bounds the nodes that fetch at one time. No bound where it is left out: in a swarm many nodes
	// at once cost the registry one copy.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=5000
	Parallelism *int32 `json:"parallelism,omitempty"`
	// Bandwidth bounds each node's download for this pin in bytes per second.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="bandwidth is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0 && quantity(string(self)).isLessThan(quantity('8Ei'))",message="bandwidth must be at least 64Ki bytes per second, and below 8Ei"
	Bandwidth *resource.Quantity `json:"bandwidth,omitempty"`
	// SizeLimit bounds the bytes of one copy.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="sizeLimit is a number with a unit of Kubernetes, such as 500M or 50Gi (Gi, not GiB)"
	// +kubebuilder:validation:XValidation:rule="!isQuantity(string(self)) || quantity(string(self)).isGreaterThan(quantity('0')) && quantity(string(self)).isLessThan(quantity('8Ei'))",message="sizeLimit must be above 0 and below 8Ei, such as 20Gi"
	SizeLimit *resource.Quantity `json:"sizeLimit,omitempty"`
	// TimeLimit bounds one attempt of a node.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('10s') && duration(self) <= duration('168h')",message="timeLimit must be between 10s and 168h, written as 90s, 10m or 24h: there is no unit for days"
	TimeLimit *metav1.Duration `json:"timeLimit,omitempty"`
	// Backoff is the pause between attempts, of nodes and of tag resolution.
	// +kubebuilder:default={initial: "10s", max: "10m"}
	Backoff Backoff `json:"backoff,omitzero"`
	// Suspend stops new work: nothing is resolved, fetched or released while it holds. Copies stay pinned.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
	// Schedule limits new work to windows of time. Copies stay pinned between them; repair waits for none.
	// +optional
	Schedule *Schedule `json:"schedule,omitempty"`

	// Expiry ends the pin. Never where it is left out.
	// +optional
	Expiry *Expiry `json:"expiry,omitempty"`
	// DeletionPolicy says what becomes of copies when the pin is deleted or expires, and on nodes that are no longer
	// chosen.
	// +kubebuilder:default=Keep
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
	// RepairDelay is how long a node may be NotReady before another takes over its copy. A node that is deleted is
	// replaced at once.
	// +kubebuilder:default="5m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('0s') && duration(self) <= duration('168h')",message="repairDelay must be between 0s and 168h, written as 90s, 10m or 24h: there is no unit for days"
	RepairDelay metav1.Duration `json:"repairDelay,omitzero"`
}

// Artifact is one thing to keep, named in one of four ways.
//
// +kubebuilder:validation:XValidation:rule="[has(self.image), has(self.digest), has(self.cid), has(self.hub)].filter(x, x).size() == 1",message="name an artifact in exactly one way: image, digest, cid or hub"
// +kubebuilder:validation:XValidation:rule="!has(self.repository) || has(self.digest) || has(self.cid)",message="repository goes with digest or cid; an image names its own"
type Artifact struct {
	// Image is a reference to an image or any other OCI artifact: registry.example/team/app:1.2, or …@sha256:….
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="!self.matches('^sha(256|512):')",message="image is a digest and names no repository: write registry.example/team/app@sha256:…, or digest instead of image"
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9A-Z][a-z0-9A-Z._-]*|[[][a-fA-F0-9:]+[]])(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha(256:[0-9a-f]{64}|512:[0-9a-f]{128}))?$')",message="image is not a reference such as registry.example/team/app:1.2 or registry.example/team/app@sha256:… (no scheme such as https://, path in lower case)"
	Image string `json:"image,omitempty"`
	// Digest of a blob or manifest.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.matches('^sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})$')",message="digest is written sha256: and 64 hexadecimal digits, or sha512: and 128, in lower case"
	Digest string `json:"digest,omitempty"`
	// CID of a blob, or of an IPFS file that peers have.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^(Qm[1-9A-HJ-NP-Za-km-z]{44}|b[a-z2-7]{50,})$')",message="cid is not a CID: write version 0 (Qm…) or version 1 in base32 (bafy…, bafk…)"
	CID string `json:"cid,omitempty"`
	// Repository that has the digest or CID, as host/path. Without it only peers can be asked.
	// +optional
	// +kubebuilder:validation:MinLength=3
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9A-Z][a-z0-9A-Z._-]*|[[][a-fA-F0-9:]+[]])(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$')",message="repository is written host/path, such as registry.example/team/app, with no scheme, tag or digest"
	Repository string `json:"repository,omitempty"`
	// Hub names files of a repository of the model hub that the agents are a front for.
	// +optional
	Hub *HubArtifact `json:"hub,omitempty"`
}

// HubArtifact is files of a repository of a model hub, at one of its commits. A token for it is in a pull secret, as
// the password for the hub's host.
type HubArtifact struct {
	// Repository of a model as owner/name, of a dataset as datasets/owner/name, of a space as spaces/owner/name.
	// +kubebuilder:validation:MaxLength=200
	// +kubebuilder:validation:XValidation:rule="self.matches('^((datasets|spaces)/)?([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$')",message="hub.repository is written owner/name, datasets/owner/name or spaces/owner/name, with no scheme, host or revision"
	Repository string `json:"repository"`
	// Revision is a branch, a tag or a commit. Where a branch moves, copies follow as resolve says.
	// +kubebuilder:default=main
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_][A-Za-z0-9_./-]*$') && !self.contains('..')",message="hub.revision is not the name of a branch, tag or commit"
	Revision string `json:"revision,omitempty"`
	// Files are patterns of paths within the repository, such as *.safetensors. * stands for any characters, slashes
	// too, ? for one; a pattern that ends with / for all below that folder. Empty: all files.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.all(f, !f.startsWith('/') && !f.contains('..'))",message="hub.files are patterns of paths within the repository, such as *.safetensors or onnx/*, with neither a leading / nor .."
	Files []string `json:"files,omitempty"`
}

// Keeps reports whether the patterns match a path.
func (h *HubArtifact) Keeps(path string) bool { return MatchesFiles(h.Files, path) }

// MatchesFiles reports whether one of the patterns of HubArtifact.files matches a path. None match all.
func MatchesFiles(patterns []string, path string) bool {
	for _, p := range patterns {
		if strings.HasSuffix(p, "/") {
			p += "*"
		}
		if matchFile(p, path) {
			return true
		}
	}
	return len(patterns) == 0
}

// matchFile takes time in proportion to the product of the lengths, whatever the pattern.
func matchFile(pattern, path string) bool {
	p, s, star, from := 0, 0, -1, 0
	for s < len(path) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, s
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == path[s]):
			p++
			s++
		case star >= 0: // the last star takes one character more
			from++
			p, s = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// maxSource is what ResolvedArtifact.source holds.
const maxSource = 512

// Source names the artifact as the spec does, in one line.
func (a Artifact) Source() string {
	if a.Hub == nil {
		return a.Image + a.Digest + a.CID
	}
	s := "hub:" + a.Hub.Repository + "@" + a.Hub.Revision
	if len(a.Hub.Files) > 0 {
		s += " " + strings.Join(a.Hub.Files, ",")
	}
	if len(s) > maxSource {
		sum := sha256.Sum256([]byte(s))
		s = strings.ToValidUTF8(s[:maxSource-20], "") + "… " + hex.EncodeToString(sum[:8])
	}
	return s
}

// WorkloadSelector selects pods of the pin's namespace, whose images are kept.
type WorkloadSelector struct {
	// Selector of pods by label. Empty: all pods of the namespace.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// InitContainers says whether images of init containers are kept as well.
	// +kubebuilder:default=Include
	InitContainers ReferrersPolicy `json:"initContainers,omitempty"`
}

// ReferrersPolicy is Include or Exclude.
// +kubebuilder:validation:Enum=Exclude;Include
type ReferrersPolicy string

const (
	// Exclude leaves them out.
	Exclude ReferrersPolicy = "Exclude"
	// Include keeps them too.
	Include ReferrersPolicy = "Include"
)

// ResolvePolicy says when tags are turned into digests.
// +kubebuilder:validation:Enum=Once;Interval;Digest
type ResolvePolicy string

const (
	// ResolveOnce resolves a tag when the pin is made, and again only when the pin's spec changes.
	ResolveOnce ResolvePolicy = "Once"
	// ResolveInterval resolves tags again and again; when one moves, copies follow.
	ResolveInterval ResolvePolicy = "Interval"
	// ResolveDigest takes digests only.
	ResolveDigest ResolvePolicy = "Digest"
)

// ResolveSpec says when tags are turned into digests.
//
// +kubebuilder:validation:XValidation:rule="self.policy == 'Interval' || !has(self.interval)",message="resolve.interval goes with policy Interval only"
type ResolveSpec struct {
	// +kubebuilder:default=Interval
	Policy ResolvePolicy `json:"policy,omitempty"`
	// Interval between resolutions with policy Interval. 1h where it is left out.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1m') && duration(self) <= duration('720h')",message="resolve.interval must be between 1m and 720h, written as 90s, 10m or 24h: there is no unit for days"
	Interval *metav1.Duration `json:"interval,omitempty"`
}

// SpreadSpec spreads copies evenly over domains.
type SpreadSpec struct {
	// TopologyKey is the node label whose value is a node's domain. Nodes without it are a domain of their own.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	TopologyKey string `json:"topologyKey"`
	// MinDomains is the number of domains below which the pin is Degraded.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	MinDomains *int32 `json:"minDomains,omitempty"`
}

// PinTarget says where a copy is kept.
// +kubebuilder:validation:Enum=Cache;CacheAndRuntime
type PinTarget string

const (
	// TargetCache keeps a copy in the node's cache.
	TargetCache PinTarget = "Cache"
	// TargetCacheAndRuntime also loads it into the node's container runtime (CRI ImageService).
	TargetCacheAndRuntime PinTarget = "CacheAndRuntime"
)

// StartupPolicy says whether a starting node waits for a pin.
// +kubebuilder:validation:Enum=Ignore;Gate
type StartupPolicy string

const (
	// StartupIgnore lets nodes start without the pin.
	StartupIgnore StartupPolicy = "Ignore"
	// StartupGate keeps the taint StartupTaint on a node until the pin is ready there.
	StartupGate StartupPolicy = "Gate"
)

// Backoff is an exponentially growing pause.
//
// +kubebuilder:validation:XValidation:rule="!has(self.initial) || !has(self.max) || duration(self.initial) <= duration(self.max)",message="backoff.initial must not exceed backoff.max: set both, for they are 10s and 10m where they are left out"
type Backoff struct {
	// Initial pause; it doubles with each failure.
	// +kubebuilder:default="10s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')",message="backoff.initial must be between 1s and 24h, written as 90s, 10m or 24h: there is no unit for days"
	Initial metav1.Duration `json:"initial,omitzero"`
	// Max is the longest pause.
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')",message="backoff.max must be between 1s and 24h, written as 90s, 10m or 24h: there is no unit for days"
	Max metav1.Duration `json:"max,omitzero"`
}

// Schedule is a recurring window of time.
type Schedule struct {
	// Cron is the start of each window in the five fields of cron: minute, hour, day of month, month, day of week.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[0-9A-Za-z*?,/-]+( [0-9A-Za-z*?,/-]+){4}$')",message="schedule.cron has five fields: minute, hour, day of month, month, day of week, such as '0 2 * * *'"
	Cron string `json:"cron"`
	// TimeZone of Cron as an IANA name.
	// +kubebuilder:default=UTC
	// +kubebuilder:validation:MaxLength=64
	TimeZone string `json:"timeZone,omitempty"`
	// Window is how long new work may be begun after each start.
	// +kubebuilder:default="1h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1m') && duration(self) <= duration('168h')",message="schedule.window must be between 1m and 168h, written as 90s, 10m or 24h: there is no unit for days"
	Window metav1.Duration `json:"window,omitzero"`
}

// Expiry ends a pin. The first of the given ends counts.
//
// +kubebuilder:validation:XValidation:rule="has(self.until) || has(self.ttl) || has(self.unusedFor)",message="expiry is empty: set until, ttl, unusedFor or several"
type Expiry struct {
	// Until is a point in time, such as 2026-12-31T00:00:00Z.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$') && timestamp(self) > timestamp('1000-01-01T00:00:00Z')",message="expiry.until is a time with its offset from UTC, such as 2026-12-31T00:00:00Z or 2026-12-31T01:00:00+01:00"
	Until *metav1.Time `json:"until,omitempty"`
	// TTL counts from the pin's creation.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1m')",message="expiry.ttl must be at least 1m, written as 90s, 10m or 24h: there is no unit for days"
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// UnusedFor counts from the last time a node's workload pulled any artifact of the pin, at first from its creation.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1h')",message="expiry.unusedFor must be at least 1h, written as 90s, 10m or 24h: there is no unit for days"
	UnusedFor *metav1.Duration `json:"unusedFor,omitempty"`
}

// DeletionPolicy says what becomes of copies that are no longer pinned.
// +kubebuilder:validation:Enum=Keep;Purge
type DeletionPolicy string

const (
	// DeletionKeep leaves them in the cache, to be evicted like anything else.
	DeletionKeep DeletionPolicy = "Keep"
	// DeletionPurge removes them from the cache, but for blobs that other pins keep.
	DeletionPurge DeletionPolicy = "Purge"
)

// ArtifactPinStatus is written by the operator alone.
type ArtifactPinStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Summary names the artifacts in one line.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Summary string `json:"summary,omitempty"`
	// Artifacts as they were resolved last.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Artifacts []ResolvedArtifact `json:"artifacts,omitempty"`
	// LastResolved is when all artifacts were last resolved without failure.
	// +optional
	LastResolved *metav1.Time `json:"lastResolved,omitempty"`
	// LastAttempt is when resolution was last attempted, and FailedAttempts how many have failed in a row.
	// +optional
	LastAttempt *metav1.Time `json:"lastAttempt,omitempty"`
	// +optional
	FailedAttempts int32 `json:"failedAttempts,omitempty"`
	// ResolvedGeneration is the generation of the spec that Artifacts were resolved for.
	// +optional
	ResolvedGeneration int64 `json:"resolvedGeneration,omitempty"`
	// PullSecrets that agents read for this pin: those of the spec and of its service account.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	PullSecrets []string `json:"pullSecrets,omitempty"`
	// Eligible is the number of nodes that may keep a copy, Desired the number of copies wanted.
	// +optional
	Eligible int32 `json:"eligible"`
	// +optional
	Desired int32 `json:"desired"`
	// Ready, Pending and Failed are the numbers of nodes whose copy is whole, on its way, or failing.
	// +optional
	Ready int32 `json:"ready"`
	// +optional
	Pending int32 `json:"pending"`
	// +optional
	Failed int32 `json:"failed"`
	// Domains is the number of domains of the spread that have a ready copy.
	// +optional
	Domains int32 `json:"domains"`
	// BytesHeld of BytesWanted, over all chosen nodes.
	// +optional
	BytesHeld *resource.Quantity `json:"bytesHeld,omitempty"`
	// +optional
	BytesWanted *resource.Quantity `json:"bytesWanted,omitempty"`
	// Held and Wanted are the same as tables show them.
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Held string `json:"held,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=24
	Wanted string `json:"wanted,omitempty"`
	// LastUsed is when a node's workload last pulled any artifact of the pin.
	// +optional
	LastUsed *metav1.Time `json:"lastUsed,omitempty"`
	// Failures by node, the first 10 in order of name.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Failures []NodeFailure `json:"failures,omitempty"`
	// Conditions: Ready, Resolved, UpToDate, Degraded, Expired.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ResolvedArtifact is an artifact as it was last resolved.
type ResolvedArtifact struct {
	// Source is the artifact as the spec names it, or the image as the pod does.
	// +kubebuilder:validation:MaxLength=512
	Source string `json:"source"`
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Repository string `json:"repository,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Tag string `json:"tag,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Digest string `json:"digest,omitempty"`
	// CID of the root: by it any IPFS client that is admitted finds the same bytes.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	CID string `json:"cid,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=255
	MediaType string `json:"mediaType,omitempty"`
	// Hub is the commit that the revision was, and the patterns of the files that are kept.
	// +optional
	Hub *ResolvedHub `json:"hub,omitempty"`
	// Size in bytes of the closure on one node, 0 where it is not known. Where platforms differ, that of the largest.
	// +optional
	Size int64 `json:"size,omitempty"`
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=256
	Referrers []string `json:"referrers,omitempty"`
}

// ResolvedHub is files of a repository of a model hub at a commit.
type ResolvedHub struct {
	// Commit of the repository.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{40}$`
	Commit string `json:"commit"`
	// Files are patterns of paths, as HubArtifact has them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=128
	Files []string `json:"files,omitempty"`
}

// Root is what the artifact was found to be: a digest, a commit of a hub, or else "".
func (r *ResolvedArtifact) Root() string {
	if r.Hub != nil {
		return r.Hub.Commit
	}
	return r.Digest
}

// NodeFailure is why one node has no copy.
type NodeFailure struct {
	NodeName string `json:"nodeName"`
	Reason   string `json:"reason"`
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message,omitempty"`
}
