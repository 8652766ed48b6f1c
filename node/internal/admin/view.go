package admin

import (
	"time"

	"github.com/shoal-cache/shoal/node/internal/policy"
)

// Node is the agent itself.
type Node struct {
	Version string `json:"version"`
	// PeerID and Addresses are what other agents know the node by; Addresses are multiaddrs.
	PeerID    string    `json:"peerID"`
	Addresses []string  `json:"addresses"`
	Zone      string    `json:"zone,omitempty"`
	Started   time.Time `json:"started"`
	Store     Store     `json:"store"`
	// Policy is the effective policy, its times in nanoseconds.
	Policy *policy.Policy `json:"policy,omitempty"`
}

// Store is the state of the agent's store; sizes are in bytes.
type Store struct {
	Path     string `json:"path"`
	Blobs    int    `json:"blobs"`
	Bytes    int64  `json:"bytes"`
	Capacity int64  `json:"capacity"`
	// Pinned are the bytes that may not be evicted.
	Pinned int64 `json:"pinned"`
	// DiskFree is what the file system has left for the agent.
	DiskFree int64 `json:"diskFree"`
}

// Peer is another agent, one that is connected now, and so admitted.
type Peer struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses,omitempty"`
	// RoundTrip is the smoothed time of a ping, in nanoseconds; 0 where none was measured.
	RoundTrip time.Duration `json:"roundTrip,omitempty"`
}

// Blob is content that the node can serve without asking anybody.
type Blob struct {
	Digest string `json:"digest"`
	// CID is the root of the blob as a UnixFS file, by which any IPFS client may ask for it.
	CID  string `json:"cid,omitempty"`
	Size int64  `json:"size"`
	// Source is "store" or "runtime".
	Source string    `json:"source"`
	Pinned bool      `json:"pinned,omitempty"`
	Used   time.Time `json:"used,omitzero"`
}

// Fetch is a blob that is arriving; sizes are in bytes.
type Fetch struct {
	Digest     string `json:"digest"`
	Repository string `json:"repository,omitempty"`
	Size       int64  `json:"size"`
	// Present is how much has arrived, in whatever order; FromPeers and FromUpstream are its parts.
	Present      int64     `json:"present"`
	FromPeers    int64     `json:"fromPeers"`
	FromUpstream int64     `json:"fromUpstream"`
	Started      time.Time `json:"started"`
	// Readers are the requests that wait for bytes of it.
	Readers int `json:"readers"`
}
