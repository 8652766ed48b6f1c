// Package content holds the vocabulary that the node agent's other packages share: how a blob is named and split into
// chunks, what a request for one carries, how a blob that may still be arriving is read, and the errors that callers
// branch on. It does no I/O.
package content

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// DefaultFirstByte is how long a client waits for the first byte of an answer, unless the agent is configured
// otherwise.
const DefaultFirstByte = 10 * time.Second

// Repository names a repository of an upstream registry.
type Repository struct {
	// Registry is the host (with port, if any) as an image reference spells it: "registry.example:5000".
	Registry string
	// Name is the path below it: "library/redis".
	Name string
}

// None reports whether r names no repository: there is no upstream that could be asked.
func (r Repository) None() bool { return r == Repository{} }

func (r Repository) String() string { return r.Registry + "/" + r.Name }

// Kind tells from which of a registry's two collections a digest is read.
type Kind uint8

const (
	// Blob is a layer, a config or any other OCI blob: /v2/<name>/blobs/<digest>.
	Blob Kind = iota
	// Manifest is an image manifest or index: /v2/<name>/manifests/<digest>.
	Manifest
)

func (k Kind) String() string {
	if k == Manifest {
		return "manifest"
	}
	return "blob"
}

// Memory is a small map that survives a restart; the store's KV and Notes are such.
type Memory interface {
	// Get reports false where nothing was put under key.
	Get(key string) ([]byte, bool)
	// Put has the value survive a restart, and where the implementation says so a crash once it has returned.
	Put(key string, value []byte) error
}

// KeptTime is the time that a Memory holds as seconds of Unix time. It carries a reading of the monotonic clock, so
// that a clock that is set back later makes nothing younger. A time in the future was noted by a clock that was ahead,
// and nobody knows how long ago. It counts as the first second of 1970.
func KeptTime(unix int64, now time.Time) time.Time {
	if unix > now.Unix() {
		unix = 1 // 0 may stand for none
	}
	return now.Add(-now.Sub(time.Unix(unix, 0)))
}

// Request asks for one blob or manifest by digest.
type Request struct {
	// Repository is where upstream has it. The zero value: no upstream is known, so only peers can be asked.
	Repository Repository
	Kind       Kind
	Digest     digest.Digest
	// File is the escaped path of a URL, with a leading slash, at which upstream has the blob. Empty: where the
	// distribution API has it. A blob with a File is asked for by Range only.
	File string
	// Size is the blob's size in bytes as a manifest states it, or 0 when it is not known.
	Size int64
	// Part: the caller wants a part of it only, so that nothing else need be read.
	Part bool
	// Held: a peer says that it holds the whole, so that who looks for holders had better wait for it.
	Held bool
	// Since is when the caller came: what it has waited for before counts as well. The zero value: it comes now.
	Since time.Time
	// Authorization is the caller's own Authorization header, sent to the registry and to no one else. It is never
	// stored and never logged. Empty: anonymous.
	Authorization string
}

// NoUpstream reports whether only this node and its peers can be asked.
func (r Request) NoUpstream() bool { return r.Repository.None() }

// WithoutUpstream is the request as it is put to peers alone.
func (r Request) WithoutUpstream() Request {
	r.Repository, r.Authorization = Repository{}, ""
	return r
}

// Reader reads a blob that is held whole or is still arriving. Its methods may be called concurrently. Package
// contenttest has the suite that every implementation passes.
type Reader interface {
	// Size is the blob's size in bytes. It is always known once a Reader exists.
	Size() int64
	// Range returns the n bytes from offset off; it is an error if they do not lie within the blob. Read blocks until
	// bytes are there. It fails, and never ends with io.EOF early, when they cannot be had or when the blob turns out
	// not to match its digest. Where the result also is an io.WriterTo, that moves file pages without copying if the
	// kernel can. The caller closes it; closing it, or ending ctx, drops this reader's demand for bytes that are not
	// here yet.
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Arrived is how many of its bytes are at this node: all of them, of a blob that is held whole.
	Arrived() int64
	// Close releases the reader.
	Close() error
}

// Held reports whether this node held the whole blob when r was opened, so that nothing of it comes from elsewhere for
// r's caller. A Reader that may read such a blob says so by a method Held; Arrived does not tell it from one that has
// just come.
func Held(r Reader) bool {
	h, ok := r.(interface{ Held() bool })
	return ok && h.Held()
}
