// Package view is what an agent shows of itself at its admin address, as JSON: the types, a client that reads them, and
// how a terminal shows them. The agent writes them, and kubectl shoal and shoal-node read them.
//
// Sizes are in bytes and durations in nanoseconds, but where a field says otherwise.
package view

import "time"

// Paths of the admin address. What they answer is beside each.
const (
	NodePath       = "/debug/shoal/node"       // a Node
	PeersPath      = "/debug/shoal/peers"      // a list of Peer
	BlobsPath      = "/debug/shoal/blobs"      // a list of Blob; ?digest=, which may be repeated, asks for some of them
	FetchesPath    = "/debug/shoal/fetches"    // a list of Fetch
	PullsPath      = "/debug/shoal/pulls"      // a list of Pull, the newest first
	ImagePath      = "/debug/shoal/image"      // an Image; ?name= is a reference with a tag or a digest
	RegistriesPath = "/debug/shoal/registries" // a list of Registry
)

// Node is the agent itself.
type Node struct {
	Version string `json:"version"`
	// PeerID and Addresses are what other agents know the node by; Addresses are multiaddrs.
	PeerID    string    `json:"peerID"`
	Addresses []string  `json:"addresses"`
	Zone      string    `json:"zone,omitempty"`
	Started   time.Time `json:"started"`
	// Now is the node's own clock.
	Now   time.Time `json:"now,omitzero"`
	Store Store     `json:"store"`
	// Traffic are sums since the agent started.
	Traffic Traffic `json:"traffic"`
	// Findings are what is amiss with the runtime's mirror configuration, in the order of gravity. MirrorUnknown: the
	// agent does not know how it is configured. MirrorAwaited: not yet, since nothing is installed so far.
	Findings      []Finding `json:"findings,omitempty"`
	MirrorUnknown bool      `json:"mirrorUnknown,omitempty"`
	MirrorAwaited bool      `json:"mirrorAwaited,omitempty"`
	// Policy is the effective policy, its times in nanoseconds.
	Policy any `json:"policy,omitempty"`
}

// Store is the state of the agent's store.
type Store struct {
	Path     string `json:"path"`
	Blobs    int    `json:"blobs"`
	Bytes    int64  `json:"bytes"`
	Capacity int64  `json:"capacity"`
	// Pinned are the bytes that may not be evicted.
	Pinned int64 `json:"pinned"`
	// DiskFree is what the file system has left for the agent.
	DiskFree int64 `json:"diskFree"`
	// Problem is why the agent cannot write to its disk; empty where it can.
	Problem string `json:"problem,omitempty"`
}

// Traffic counts what an agent did.
type Traffic struct {
	// Hits are runtimes' requests answered from this node's disk, Misses those that took bytes from elsewhere.
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
	// FromPeers and FromUpstream were taken from there, ToPeers given to peers.
	FromPeers    int64 `json:"fromPeers"`
	FromUpstream int64 `json:"fromUpstream"`
	ToPeers      int64 `json:"toPeers"`
	// Saved were given to callers without a registry being read for them on this node.
	Saved int64 `json:"saved"`
}

// Finding is something that somebody should look at.
type Finding struct {
	// Reason is one of the reasons of the condition MirrorConfigured.
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Peer is another agent, one that is connected now, and so admitted.
type Peer struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses,omitempty"`
	// RoundTrip is the smoothed time of a ping; 0 where none was measured.
	RoundTrip time.Duration `json:"roundTrip,omitempty"`
}

// Blob is content that the node can serve without asking anybody.
type Blob struct {
	Digest string `json:"digest"`
	// CID is the root of the blob as a UnixFS file, by which any IPFS client may ask for it.
	CID       string `json:"cid,omitempty"`
	Size      int64  `json:"size"`
	MediaType string `json:"mediaType,omitempty"`
	// Source is "store" or "runtime".
	Source string    `json:"source"`
	Pinned bool      `json:"pinned,omitempty"`
	Used   time.Time `json:"used,omitzero"`
	// Fetch is how it came to this node, in answers about single digests. It is nil where the agent does not know: the
	// blob was here before the agent, or was put in by hand.
	Fetch *PullFetch `json:"fetch,omitempty"`
}

// Fetch is a blob that is arriving.
type Fetch struct {
	Digest     string `json:"digest"`
	Repository string `json:"repository,omitempty"`
	// Size is -1 while it is not known.
	Size int64 `json:"size"`
	// Present is how much has arrived, in whatever order; FromPeers and FromUpstream are its parts.
	Present      int64     `json:"present"`
	FromPeers    int64     `json:"fromPeers"`
	FromUpstream int64     `json:"fromUpstream"`
	Started      time.Time `json:"started"`
	// Readers are the requests that wait for bytes of it.
	Readers int `json:"readers"`
	// Map is how much of each part of the blob is here, in tenths: the blob in at most 64 parts of the same size. Empty
	// while the size is not known.
	Map []int `json:"map,omitempty"`
	// Peers are the bytes that have come from each peer, by its ID.
	Peers map[string]int64 `json:"peers,omitempty"`
}

// Image is what a node knows of an image: the content that it is made of, and which of it is here.
type Image struct {
	Name string `json:"name"`
	// Digest is that of the root; empty where this node does not know the tag.
	Digest string `json:"digest,omitempty"`
	// Parts are the root and all that it refers to, as far as manifests are here. Complete: every manifest of one
	// platform at least and all that it refers to is here.
	Parts    []ImagePart `json:"parts,omitempty"`
	Complete bool        `json:"complete"`
}

// ImagePart is one blob or manifest of an image.
type ImagePart struct {
	Digest    string `json:"digest"`
	Kind      string `json:"kind"` // "index", "manifest", "config" or "layer"
	Size      int64  `json:"size"`
	Platform  string `json:"platform,omitempty"`
	Held      bool   `json:"held"`
	MediaType string `json:"mediaType,omitempty"`
}

// Held are the bytes of the parts that are here.
func (i Image) Held() (bytes int64) {
	for _, p := range i.Parts {
		if p.Held {
			bytes += p.Size
		}
	}
	return bytes
}

// Registry is a registry that the agent is configured for or was asked for lately, and whether it answers now.
type Registry struct {
	Host string `json:"host"`
	// Problem is why it could not be asked; empty where it answers, be it with a challenge.
	Problem string        `json:"problem,omitempty"`
	Took    time.Duration `json:"took"`
}

// Pull is a pull of an image, or of blobs of a repository, as the registry front saw it: requests that follow each
// other without a longer pause.
type Pull struct {
	Repository string `json:"repository"`
	// Reference is the tag or digest of its first manifest; empty where no manifest was asked for.
	Reference string    `json:"reference,omitempty"`
	Started   time.Time `json:"started"`
	// Took is from the first request to the end of the last answer; Running: it is not over yet.
	Took    time.Duration `json:"took"`
	Running bool          `json:"running,omitempty"`
	Parts   []PullPart    `json:"parts"`
	// Dropped is the number of requests that were not recorded, because there were too many.
	Dropped int `json:"dropped,omitempty"`
}

// Image is what was pulled, as a reference.
func (p Pull) Image() string {
	switch {
	case p.Reference == "":
		return p.Repository
	case len(p.Reference) > 7 && p.Reference[:7] == "sha256:", len(p.Reference) > 7 && p.Reference[:7] == "sha512:":
		return p.Repository + "@" + p.Reference
	}
	return p.Repository + ":" + p.Reference
}

// PullPart is one blob or manifest of a pull. Its times are of the request that took longest.
type PullPart struct {
	Digest string `json:"digest,omitempty"`
	Kind   string `json:"kind"` // "manifest" or "blob"
	// Bytes were given to the caller, over Requests answers.
	Bytes    int64 `json:"bytes"`
	Requests int   `json:"requests"`
	// Code is the last answer's status; Problem is why it failed.
	Code    string `json:"code"`
	Problem string `json:"problem,omitempty"`

	// After is from the pull's start to the request. Resolve is the time of asking what a tag names, Authorize of
	// asking whether the caller may read, FirstByte until the answer began, Took until it ended; each but the first
	// from the request on.
	After     time.Duration `json:"after"`
	Resolve   time.Duration `json:"resolve,omitempty"`
	Authorize time.Duration `json:"authorize,omitempty"`
	FirstByte time.Duration `json:"firstByte,omitempty"`
	Took      time.Duration `json:"took"`

	// Fetch is how the bytes came to this node; nil where they were here.
	Fetch *PullFetch `json:"fetch,omitempty"`
}

// PullFetch is how a blob came to a node. Its times are from the fetch's start on; one that did not come to it is 0.
type PullFetch struct {
	// Before is how long before the request it began, where it was under way already.
	Before time.Duration `json:"before,omitempty"`
	// Discovery is the time until a coordinator was found, Plan until its first orders, FirstChunk until the first
	// chunk was here, Took until the end.
	Discovery  time.Duration `json:"discovery,omitempty"`
	Plan       time.Duration `json:"plan,omitempty"`
	FirstChunk time.Duration `json:"firstChunk,omitempty"`
	Took       time.Duration `json:"took"`
	Size       int64         `json:"size"`
	// Kept were here from an earlier try, FromPeers and FromUpstream came. Peers are the bytes by peer ID.
	Kept         int64            `json:"kept,omitempty"`
	FromPeers    int64            `json:"fromPeers"`
	FromUpstream int64            `json:"fromUpstream"`
	Peers        map[string]int64 `json:"peers,omitempty"`
	Outcome      string           `json:"outcome"` // "complete", "failed", "abandoned" or "passed through"
	Problem      string           `json:"problem,omitempty"`
}

// Sources are the bytes that a pull gave to its caller, by where they came from.
func (p Pull) Sources() (local, peers, upstream int64) {
	for _, part := range p.Parts {
		f := part.Fetch
		if f == nil {
			local += part.Bytes
			continue
		}
		u := min(part.Bytes, f.FromUpstream)
		q := min(part.Bytes-u, f.FromPeers)
		upstream, peers, local = upstream+u, peers+q, local+part.Bytes-u-q
	}
	return local, peers, upstream
}
