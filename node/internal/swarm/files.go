package swarm

import (
	"context"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Files finds blobs by the CID of their UnixFS file.
type Files struct {
	swarm *Swarm
	own   func(root cid.Cid) (digest.Digest, int64, bool)
}

// NewFiles answers other nodes, and this one first, by own: the digest and size in bytes of the blob whose UnixFS root
// a CID is.
func NewFiles(s *Swarm, own func(root cid.Cid) (digest.Digest, int64, bool)) *Files {
	f := &Files{swarm: s, own: own}
	answer(s, "file", f.answer)
	return f
}

// Resolve returns the digest and size of the blob whose UnixFS root is root, as this node or a connected peer has it.
// The answer of a peer is its word: whoever fetches the blob compares its root. It fails with content.ErrNotFound.
func (f *Files) Resolve(ctx context.Context, root cid.Cid) (digest.Digest, int64, error) {
	if d, size, ok := f.own(root); ok {
		return d, size, nil
	}
	var found digest.Digest
	var size int64
	askPeers(ctx, f.swarm, "file", fileQuery{Root: root.Bytes()}, func(a fileAnswer) bool {
		d, err := validDigest(a.Digest)
		if !a.Found || err != nil || a.Size < 0 || a.Size > content.MaxSize {
			return false
		}
		found, size = d, a.Size
		return true
	})
	if found == "" {
		return "", 0, content.ErrNotFound
	}
	return found, size, nil
}

func (f *Files) answer(q fileQuery) fileAnswer {
	root, err := cid.Cast(q.Root)
	if err != nil {
		return fileAnswer{}
	}
	d, size, ok := f.own(root)
	return fileAnswer{Found: ok, Digest: string(d), Size: size}
}
