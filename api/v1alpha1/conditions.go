package v1alpha1

import "time"

// Labels, taints and field managers.
const (
	// StartupTaint is a taint (effect NoSchedule) that an administrator gives nodes at registration. The operator
	// lifts it when every pin with startup Gate that chose the node is ready there, or has been waited for long enough
	// (StartupPatience): a tag that is gone must not keep every new node out for ever.
	StartupTaint = "shoal.dev/starting"
	// StartingSince is the annotation by which the operator remembers since when a node has had StartupTaint and no
	// admitted agent, whatever becomes of the operator. It goes with the taint.
	StartingSince = "shoal.dev/starting-since"
	// ManagedByLabel marks the Roles and RoleBindings by which the operator lets agents read pull secrets.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	// ManagedByOperator is the value of ManagedByLabel, and the operator's only server-side apply field manager.
	ManagedByOperator = "shoal-operator"
	// AgentFieldManager is the agents' server-side apply field manager.
	AgentFieldManager = "shoal-node"
)

// What an agent may write. An agent writes its Peer when it starts and when what it says has changed, and the status of
// its NodeCache. Together these bound its writes to 4 a minute in the mean, 6 while pins end all the time, and 1 in
// HeartbeatInterval when nothing happens.
const (
	// ReportInterval is the mean time between two writes of NodeCache.status by one agent because something has
	// changed, at least. After a quiet time a second write may follow the first sooner. Counters that move are written
	// where nothing was for so long. The ends of pins have turns of their own beside that, at the same mean.
	ReportInterval = 30 * time.Second
	// PeerInterval is the least time between two writes of a Peer by its agent, but for the first.
	PeerInterval = time.Minute
	// HeartbeatInterval is the greatest time between two writes of NodeCache.status, with a jitter of a tenth.
	HeartbeatInterval = 5 * time.Minute
	// StaleAfter is how long an agent may leave NodeCache.status.reportedAt as it is before the operator takes it for
	// silent.
	StaleAfter = 3 * HeartbeatInterval
)

// StartupPatience is how long a node that has joined keeps StartupTaint for a pin that does not become ready there,
// unless the pin's timeLimit is longer. A node whose agent is not admitted keeps it so long from when an operator first
// saw that.
const StartupPatience = 10 * time.Minute

// LongestStartupPatience bounds what a pin's time limit adds to StartupPatience: a pin is of one namespace, and a node
// of all.
const LongestStartupPatience = 30 * time.Minute

// Condition types.
const (
	// ConditionReady: Swarm, CachePolicy, ArtifactPin. The object does what its spec asks.
	ConditionReady = "Ready"
	// ConditionAdmitted: Peer. The peer may join.
	ConditionAdmitted = "Admitted"
	// ConditionConflicting: CachePolicy. Another policy of the same priority disagrees.
	ConditionConflicting = "Conflicting"
	// ConditionResolved: ArtifactPin. Every artifact has a digest for the present spec.
	ConditionResolved = "Resolved"
	// ConditionUpToDate: ArtifactPin. Upstream still has each tag, and it still names the digest that is kept.
	ConditionUpToDate = "UpToDate"
	// ConditionDegraded: ArtifactPin. Fewer copies than minReplicas, or fewer domains than minDomains. A copy of an
	// earlier revision counts as long as its node holds it in place of one that is on its way.
	ConditionDegraded = "Degraded"
	// ConditionExpired: ArtifactPin. Its expiry has passed; its copies are released.
	ConditionExpired = "Expired"
	// ConditionMirrorConfigured: NodeCache. The node's container runtime is configured to ask the agent first.
	ConditionMirrorConfigured = "MirrorConfigured"
	// ConditionPolicyApplied: NodeCache. The agent runs with the policies that it has seen last.
	ConditionPolicyApplied = "PolicyApplied"
	// ConditionPinsReady: NodeCache. Every pin that the node is to keep is whole.
	ConditionPinsReady = "PinsReady"
	// ConditionStoreUsable: NodeCache. The agent can write to its disk. While it cannot, what is not cached passes
	// through from the registry.
	ConditionStoreUsable = "StoreUsable"
	// ConditionModelsFit: NodeCache, where the hub front is on. Every file of a model that was asked for in the last
	// hour has room in the cache. One that has none is shared while it is read, and not kept.
	ConditionModelsFit = "ModelsFit"
)

// Reasons of Swarm's condition Ready.
const (
	// ReasonBootstrapPublished: the bootstrap set is full, or holds every live member.
	ReasonBootstrapPublished = "BootstrapPublished"
	// ReasonNoMembers: no peer is admitted yet.
	ReasonNoMembers = "NoMembers"
	// ReasonNoLiveMembers: peers are admitted, and none of them is live.
	ReasonNoLiveMembers = "NoLiveMembers"
)

// Reasons of Peer's condition Admitted, besides ReasonInvalidSelector: the nodeSelector of the Swarm's spec.admission
// is malformed.
const (
	// ReasonNodeVerified: the node exists and the proof holds.
	ReasonNodeVerified = "NodeVerified"
	// ReasonNodeNotFound: no Node of this name exists.
	ReasonNodeNotFound = "NodeNotFound"
	// ReasonInvalidProof: the proof is not the peer ID's signature of this node's name.
	ReasonInvalidProof = "InvalidProof"
	// ReasonInvalidAddress: an address is no multiaddr.
	ReasonInvalidAddress = "InvalidAddress"
	// ReasonDuplicatePeerID: another node's peer was admitted with the same peer ID before.
	ReasonDuplicatePeerID = "DuplicatePeerID"
	// ReasonDenied: Swarm.spec.admission.denyNodes names the node.
	ReasonDenied = "Denied"
	// ReasonNodeNotSelected: Swarm.spec.admission.nodeSelector does not match the node.
	ReasonNodeNotSelected = "NodeNotSelected"
	// ReasonAdmissionFrozen: Swarm.spec.admission.mode is Frozen.
	ReasonAdmissionFrozen = "AdmissionFrozen"
	// ReasonNoSwarm: there is no Swarm "default".
	ReasonNoSwarm = "NoSwarm"
)

// Reasons of NodeCache's condition MirrorConfigured: those of what somebody should look at, first of what keeps the
// runtime from asking the agent. PolicyApplied has Applied, Applying and Rejected, PinsReady has AllReady, Fetching and
// FetchFailed.
const (
	// ReasonMirrorConfigured: nothing is left to look at.
	ReasonMirrorConfigured = "MirrorConfigured"
	// ReasonMirrorNotChecked: the agent was not told how the mirror was configured, or could not look.
	ReasonMirrorNotChecked = "NotChecked"
	// ReasonConfigPathUnset: containerd's configuration names no directory of mirrors (config_path), so it reads none.
	ReasonConfigPathUnset = "ConfigPathUnset"
	// ReasonConfigPathElsewhere: containerd's configuration names another directory than the one that was written.
	ReasonConfigPathElsewhere = "ConfigPathElsewhere"
	// ReasonConfigPathList: containerd's configuration names a list of directories, which it takes for the name of one.
	ReasonConfigPathList = "ConfigPathList"
	// ReasonRuntimeBypasses: the runtime pulled an image that the mirror is for, and did not ask the agent.
	ReasonRuntimeBypasses = "RuntimeBypasses"
	// ReasonCRIDisabled: containerd is configured not to serve the CRI, so that Kubernetes cannot pull through it.
	ReasonCRIDisabled = "CRIDisabled"
	// ReasonLegacyMirrors: containerd's configuration holds mirrors in the old form, which excludes a directory of
	// mirrors.
	ReasonLegacyMirrors = "LegacyMirrors"
	// ReasonRuntimeConfigUnreadable: containerd's configuration could not be read, so nothing is known about it.
	ReasonRuntimeConfigUnreadable = "RuntimeConfigUnreadable"
	// ReasonNotMirrored: some registry's entry had to be left as it is, so that registry is not mirrored.
	ReasonNotMirrored = "NotMirrored"
	// ReasonMirrorOutdated: the mirror configuration takes over what other files say, and they were changed since.
	ReasonMirrorOutdated = "Outdated"
	// ReasonRestartNeeded: the runtime reads the change only when it starts.
	ReasonRestartNeeded = "RestartNeeded"
	// ReasonMirrorEdited: somebody changed a file of the mirror configuration since it was written.
	ReasonMirrorEdited = "Edited"
	// ReasonMirrorMissing: somebody removed a file of the mirror configuration since it was written.
	ReasonMirrorMissing = "Missing"
)

// Reasons of NodeCache's condition StoreUsable.
const (
	// ReasonDiskWorks: nothing is wrong.
	ReasonDiskWorks = "DiskWorks"
	// ReasonDiskFull: the disk or a quota of it is full.
	ReasonDiskFull = "DiskFull"
	// ReasonDiskFails: the disk refuses to be written to, or hangs.
	ReasonDiskFails = "DiskFails"
)

// Reasons of NodeCache's condition ModelsFit.
const (
	// ReasonModelsFit: nothing has been too large of late.
	ReasonModelsFit = "ModelsFit"
	// ReasonNoRoomForModels: a file is larger than what the cache has for models. The message names it and the key.
	ReasonNoRoomForModels = "NoRoomForModels"
)

// Reasons of CachePolicy's conditions, and of NodeCache's PolicyApplied.
const (
	// ReasonPolicyRejected: the policies make no sense to the agent, or to some matching node's, which goes on with the
	// last that did.
	ReasonPolicyRejected = "Rejected"
	// ReasonApplied: every matching node's agent runs with it.
	ReasonApplied = "Applied"
	// ReasonApplying: some matching node's agent does not run with it yet.
	ReasonApplying = "Applying"
	// ReasonNoNodeMatches: the selector matches no node that runs an agent.
	ReasonNoNodeMatches = "NoNodeMatches"
	// ReasonInvalidSelector: the selector is malformed.
	ReasonInvalidSelector = "InvalidSelector"
	// ReasonNoConflict: no other policy of the same priority disagrees.
	ReasonNoConflict = "NoConflict"
	// ReasonSamePriority: another policy of the same priority disagrees.
	ReasonSamePriority = "SamePriority"
)

// Reasons of ArtifactPin's conditions.
const (
	// ReasonAllReady: every wanted copy is whole.
	ReasonAllReady = "AllReady"
	// ReasonFetching: copies are on their way.
	ReasonFetching = "Fetching"
	// ReasonFetchFailed: some node's last attempt failed; see status.failures.
	ReasonFetchFailed = "FetchFailed"
	// ReasonNoEligibleNodes: no node matches nodeSelector and tolerations with an admitted peer.
	ReasonNoEligibleNodes = "NoEligibleNodes"
	// ReasonTooFewNodes: fewer nodes are eligible than copies are wanted.
	ReasonTooFewNodes = "TooFewNodes"
	// ReasonInsufficientCapacity: one copy is larger than the cache of every eligible node.
	ReasonInsufficientCapacity = "InsufficientCapacity"
	// ReasonSizeLimitExceeded: one copy is larger than sizeLimit.
	ReasonSizeLimitExceeded = "SizeLimitExceeded"
	// ReasonPinLimit: eligible nodes already keep as many pins as one node can (MaxPinsPerNode, MaxPinBytesPerNode).
	ReasonPinLimit = "PinLimit"
	// ReasonNodesDown: what is wanted is there but for nodes that are down for longer than the repair delay.
	ReasonNodesDown = "NodesDown"
	// ReasonSuspended: spec.suspend is set.
	ReasonSuspended = "Suspended"
	// ReasonWaitingForSchedule: work is due and the schedule's window is shut.
	ReasonWaitingForSchedule = "WaitingForSchedule"
	// ReasonExpired: the pin's expiry has passed.
	ReasonExpired = "Expired"
	// ReasonNotExpired: the pin's expiry has not passed.
	ReasonNotExpired = "NotExpired"
	// ReasonPurging: the pin is being deleted and nodes are removing its copies.
	ReasonPurging = "Purging"
	// ReasonInvalidSpec: the spec can't be carried out as it stands; the message says what to change.
	ReasonInvalidSpec = "InvalidSpec"

	// ReasonResolved: every artifact has a digest.
	ReasonResolved = "Resolved"
	// ReasonResolving: artifacts are being resolved for the first time for this spec.
	ReasonResolving = "Resolving"
	// ReasonNoWorkloads: the workload selector matches no running pod.
	ReasonNoWorkloads = "NoWorkloads"
	// ReasonSecretNotFound: a pull secret does not exist, or can't by its name.
	ReasonSecretNotFound = "SecretNotFound"
	// ReasonInvalidSecret: a pull secret holds no docker config.
	ReasonInvalidSecret = "InvalidSecret"
	// ReasonPullSecretsNotAllowed: this installation of Shoal has no right to read pull secrets in the pin's namespace.
	ReasonPullSecretsNotAllowed = "PullSecretsNotAllowed"
	// ReasonServiceAccountNotFound: the service account does not exist.
	ReasonServiceAccountNotFound = "ServiceAccountNotFound"
	// ReasonNotFoundUpstream: the registry answers that it has no such tag, manifest or blob.
	ReasonNotFoundUpstream = "NotFoundUpstream"
	// ReasonUnauthorized: the registry refuses the credentials, or wants some.
	ReasonUnauthorized = "Unauthorized"
	// ReasonRegistryUnreachable: the registry does not answer, or answers with a failure of its own.
	ReasonRegistryUnreachable = "RegistryUnreachable"
	// ReasonRateLimited: the registry answers 429.
	ReasonRateLimited = "RateLimited"
	// ReasonInvalidManifest: the registry has a manifest of that name that can't be right.
	ReasonInvalidManifest = "InvalidManifest"
	// ReasonNoSuchPlatform: an index has no manifest for a platform asked for.
	ReasonNoSuchPlatform = "NoSuchPlatform"
	// ReasonTooManyArtifacts: more artifacts than one pin holds.
	ReasonTooManyArtifacts = "TooManyArtifacts"

	// ReasonCurrent: upstream names the digests that are kept.
	ReasonCurrent = "Current"
	// ReasonTagMoved: a tag names another digest, and the pin follows no tags (resolve Once).
	ReasonTagMoved = "TagMoved"
	// ReasonVanishedUpstream: a tag or digest that was resolved is gone upstream. Copies are kept.
	ReasonVanishedUpstream = "VanishedUpstream"
	// ReasonNotChecked: no artifact names a repository, so there is no registry to ask. One that could not be asked has
	// the reason of the failure, such as RegistryUnreachable, and the status Unknown.
	ReasonNotChecked = "NotChecked"

	// ReasonTooFewCopies: fewer ready copies than minReplicas.
	ReasonTooFewCopies = "TooFewCopies"
	// ReasonTooFewDomains: ready copies in fewer domains than minDomains.
	ReasonTooFewDomains = "TooFewDomains"
	// ReasonEnoughCopies: the minimum holds.
	ReasonEnoughCopies = "EnoughCopies"
)

// Reasons that agents report in PinProgress.reason. SizeLimitExceeded, NotFoundUpstream, Unauthorized,
// RegistryUnreachable, RateLimited, SecretNotFound, InvalidSecret and NoSuchPlatform mean there what they mean above.
const (
	// FetchExceedsCapacity: the artifact is larger than the node's cache, or than what other pins leave of it.
	FetchExceedsCapacity = "ExceedsCapacity"
	// FetchDiskFull: the disk is at its floor of free space.
	FetchDiskFull = "DiskFull"
	// FetchTimedOut: timeLimit passed.
	FetchTimedOut = "TimedOut"
	// FetchDigestMismatch: what arrived was not what the digest names.
	FetchDigestMismatch = "DigestMismatch"
	// FetchRuntimeFailed: the container runtime refused the image.
	FetchRuntimeFailed = "RuntimeFailed"
	// FetchFailed: anything else; see the message.
	FetchFailed = "FetchFailed"
)
