// Package v1alpha1 is the API shoal.dev/v1alpha1: what the administrator asks of the cache (Swarm, CachePolicy), what
// users ask of it (ArtifactPin), and what operator and agents tell each other (Peer, NodeCache).
//
// Besides the kinds it holds what both sides must compute alike: labels, condition types and reasons, the proof by
// which a peer ID is bound to a node, and Effective, which merges policies for one node. It does no I/O.
//
// +kubebuilder:object:generate=true
// +groupName=shoal.dev
package v1alpha1
