package content

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
)

// ChunkSize is the size in bytes of every chunk of a blob but the last, which may be shorter: the leaf size of the
// UnixFS profile unixfs-v1-2025 (IPIP-499), and well below the 2 MiB that Bitswap implementations take as a block.
const ChunkSize = 1 << 20

// Chunks is the number of chunks of a blob of size bytes. An empty blob has one chunk, of no bytes.
func Chunks(size int64) int {
	if size <= 0 {
		return 1
	}
	return int((size + ChunkSize - 1) / ChunkSize)
}

// ChunkRange is the offset and length in bytes of chunk i of a blob of size bytes.
func ChunkRange(size int64, i int) (off, n int64) {
	off = int64(i) * ChunkSize
	return off, min(ChunkSize, size-off)
}

// ChunkCID is the CID of a chunk's bytes: CIDv1, raw codec, SHA2-256.
func ChunkCID(data []byte) cid.Cid {
	sum := sha256.Sum256(data)
	return rawCID(sum[:])
}

// OfNothing reports whether a digest is that of no bytes.
func OfNothing(d digest.Digest) bool { return d != "" && d == d.Algorithm().FromBytes(nil) }

// DigestCID is CIDv1(raw, the OCI digest itself): the key under which a blob is provided in the DHT. Of a blob of one
// chunk it also is that chunk's CID. It fails for digests other than sha256 and sha512.
func DigestCID(d digest.Digest) (cid.Cid, error) {
	if err := d.Validate(); err != nil {
		return cid.Undef, fmt.Errorf("digest %q: %w", d, err)
	}
	code, ok := map[digest.Algorithm]uint64{digest.SHA256: mh.SHA2_256, digest.SHA512: mh.SHA2_512}[d.Algorithm()]
	if !ok {
		return cid.Undef, fmt.Errorf("digest %q: algorithm %s has no multihash here; sha256 and sha512 do", d,
			d.Algorithm())
	}
	raw, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return cid.Undef, fmt.Errorf("digest %q: %w", d, err)
	}
	hash, err := mh.Encode(raw, code)
	if err != nil {
		return cid.Undef, fmt.Errorf("digest %q: %w", d, err)
	}
	return cid.NewCidV1(cid.Raw, hash), nil
}

// CIDDigest is the OCI digest that a raw CIDv1 over SHA2-256 or SHA2-512 stands for, the inverse of DigestCID.
func CIDDigest(c cid.Cid) (digest.Digest, error) {
	h, err := mh.Decode(c.Hash())
	if err != nil {
		return "", fmt.Errorf("CID %s: %w", c, err)
	}
	var d digest.Digest
	switch {
	case c.Type() != cid.Raw:
		return "", fmt.Errorf("CID %s: codec is not raw, so its hash is not that of a blob", c)
	case h.Code == mh.SHA2_256:
		d = digest.NewDigestFromBytes(digest.SHA256, h.Digest)
	case h.Code == mh.SHA2_512:
		d = digest.NewDigestFromBytes(digest.SHA512, h.Digest)
	default:
		return "", fmt.Errorf("CID %s: its hash is %s; sha2-256 and sha2-512 name blobs", c, h.Name)
	}
	if err := d.Validate(); err != nil { // a multihash may hold a part of the hash
		return "", fmt.Errorf("CID %s: %w", c, err)
	}
	return d, nil
}

// SumCID is the CID of a chunk whose SHA-256 is sum.
func SumCID(sum [sha256.Size]byte) cid.Cid { return rawCID(sum[:]) }

func rawCID(sum []byte) cid.Cid {
	hash, err := mh.Encode(sum, mh.SHA2_256)
	if err != nil {
		panic(err) // only an unknown code or a wrong length fails, and both are constants here
	}
	return cid.NewCidV1(cid.Raw, hash)
}
