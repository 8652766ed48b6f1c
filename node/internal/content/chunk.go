package content

import (
	"crypto/sha256"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/api/cids"
)

// ChunkSize is the size in bytes of every chunk of a blob but the last, which may be shorter: the leaf size of the
// UnixFS profile unixfs-v1-2025 (IPIP-499), and well below the 2 MiB that Bitswap implementations take as a block.
const ChunkSize = 1 << 20

// ChunkCID is the CID of a chunk's bytes: CIDv1, raw codec, SHA2-256.
func ChunkCID(data []byte) cid.Cid {
	sum := sha256.Sum256(data)
	return rawCID(sum[:])
}

// OfNothing reports whether a digest is that of no bytes.
func OfNothing(d digest.Digest) bool { return d != "" && d == d.Algorithm().FromBytes(nil) }

// DigestCID is the key under which a blob is provided in the DHT. Of a blob of one chunk it also is that chunk's CID.
func DigestCID(d digest.Digest) (cid.Cid, error) { return cids.OfDigest(d) }

// CIDDigest is the inverse of DigestCID.
func CIDDigest(c cid.Cid) (digest.Digest, error) { return cids.Digest(c) }

// SumCID is the CID of a chunk whose SHA-256 is sum.
func SumCID(sum [sha256.Size]byte) cid.Cid { return rawCID(sum[:]) }

func rawCID(sum []byte) cid.Cid {
	hash, err := mh.Encode(sum, mh.SHA2_256)
	if err != nil {
		panic(err) // only an unknown code or a wrong length fails, and both are constants here
	}
	return cid.NewCidV1(cid.Raw, hash)
}
