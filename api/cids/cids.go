// Package cids says which CID names the bytes that a digest names.
package cids

import (
	"encoding/hex"
	"fmt"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
)

// OfDigest is CIDv1(raw, the OCI digest itself). It fails for digests other than sha256 and sha512.
func OfDigest(d digest.Digest) (cid.Cid, error) {
	if err := d.Validate(); err != nil {
		return cid.Undef, fmt.Errorf("digest %q: %w", d, err)
	}
	code, ok := map[digest.Algorithm]uint64{digest.SHA256: mh.SHA2_256, digest.SHA512: mh.SHA2_512}[d.Algorithm()]
	if !ok {
		return cid.Undef, fmt.Errorf("digest %q: algorithm %s has no CID; sha256 and sha512 have one", d,
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

// Digest is the OCI digest that a raw CIDv1 over SHA2-256 or SHA2-512 stands for, the inverse of OfDigest. Other CIDs
// name a DAG, and have none.
func Digest(c cid.Cid) (digest.Digest, error) {
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
