package content

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

const (
	// MaxSize is the largest blob in bytes that Shoal takes: 1 TiB. It bounds what a peer can make this node allocate.
	MaxSize = 1 << 40
	// dagWidth is the number of links of a full inner node in the profile unixfs-v1-2025.
	dagWidth = 1024

	leavesVersion = 1
	piecesVersion = 2
	hashSize      = sha256.Size
)

// ChunkMap is the ordered chunk CIDs of a blob. It is kept as bare SHA-256 sums, 32 bytes for each MiB of the blob.
// The zero value is not usable; NewChunkMap makes one.
type ChunkMap struct {
	cut    Cut
	sums   []byte    // cut.Len() times hashSize; all zero where a CID is not known yet
	pieces *ChunkMap // nil while not known
}

var unknownSum [hashSize]byte

// NewChunkMap makes the map of a blob that is cut so, none of whose CIDs is known.
func NewChunkMap(cut Cut) (*ChunkMap, error) {
	if size := cut.Size(); size < 0 || size > MaxSize {
		return nil, fmt.Errorf("blob size of %d bytes is outside 0 to %d", size, int64(MaxSize))
	}
	return &ChunkMap{cut: cut, sums: make([]byte, cut.Len()*hashSize)}, nil
}

// Cut is how the blob is cut.
func (m *ChunkMap) Cut() Cut { return m.cut }

// Pieces is the map of a blob's pieces, which goes with that of its leaves: this one where those are the same. It is
// nil where it is not known.
func (m *ChunkMap) Pieces() *ChunkMap {
	if m.cut == Pieces.Cut(m.Size()) {
		return m
	}
	return m.pieces
}

// SetPieces has the map of a blob's pieces go with that of its leaves.
func (m *ChunkMap) SetPieces(pieces *ChunkMap) { m.pieces = pieces }

// Size is the blob's size in bytes.
func (m *ChunkMap) Size() int64 { return m.cut.Size() }

// Len is the number of chunks.
func (m *ChunkMap) Len() int { return len(m.sums) / hashSize }

// CID is the CID of chunk i, cid.Undef where it is not known.
func (m *ChunkMap) CID(i int) cid.Cid {
	sum := m.sums[i*hashSize : (i+1)*hashSize]
	if bytes.Equal(sum, unknownSum[:]) {
		return cid.Undef
	}
	return rawCID(sum)
}

// Set records the CID of chunk i. It fails when c is not a raw CIDv1 over SHA2-256.
func (m *ChunkMap) Set(i int, c cid.Cid) error {
	p := c.Prefix()
	if p != chunkPrefix {
		return fmt.Errorf("chunk %d: CID %s is not CIDv1, raw, sha2-256", i, c)
	}
	h := c.Hash()
	copy(m.sums[i*hashSize:], h[len(h)-hashSize:])
	return nil
}

var chunkPrefix = rawCID(unknownSum[:]).Prefix()

// Complete reports whether every chunk's CID is known.
func (m *ChunkMap) Complete() bool {
	for i := range m.Len() {
		if bytes.Equal(m.sums[i*hashSize:(i+1)*hashSize], unknownSum[:]) {
			return false
		}
	}
	return true
}

// Clone returns an independent copy, without the pieces.
func (m *ChunkMap) Clone() *ChunkMap {
	return &ChunkMap{cut: m.cut, sums: bytes.Clone(m.sums)}
}

// MarshalBinary encodes the map: a version byte, which tells leaves from pieces, the size as a uvarint, and the sums in
// order.
func (m *ChunkMap) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, 1+binary.MaxVarintLen64+len(m.sums))
	version := byte(leavesVersion)
	if m.cut != CutLeaves(m.Size()) {
		version = piecesVersion
	}
	b = append(b, version)
	b = binary.AppendUvarint(b, uint64(m.Size()))
	return append(b, m.sums...), nil
}

// UnmarshalBinary decodes what MarshalBinary made. It fails for anything else, and allocates no more than len(b).
func (m *ChunkMap) UnmarshalBinary(b []byte) error {
	if len(b) == 0 || b[0] != leavesVersion && b[0] != piecesVersion {
		return fmt.Errorf("chunk map: no header of version %d or %d in %d bytes", leavesVersion, piecesVersion, len(b))
	}
	grain := Leaves
	if b[0] == piecesVersion {
		grain = Pieces
	}
	size, n := binary.Uvarint(b[1:])
	if n <= 0 || size > MaxSize {
		return fmt.Errorf("chunk map: size is malformed or above %d bytes", int64(MaxSize))
	}
	cut, sums := grain.Cut(int64(size)), b[1+n:]
	if want := cut.Len() * hashSize; len(sums) != want {
		return fmt.Errorf("chunk map of a blob of %d bytes: %d bytes of sums, want %d", size, len(sums), want)
	}
	*m = ChunkMap{cut: cut, sums: bytes.Clone(sums)}
	return nil
}

// DAG returns the blob's root CID as a UnixFS file of the profile unixfs-v1-2025 (IPIP-499: CIDv1, raw leaves of
// 1 MiB, balanced layout of width 1024) and its inner nodes, root last. A blob of one chunk has no inner node: its
// root is the chunk. The map must be of leaves, and complete.
func (m *ChunkMap) DAG() (root cid.Cid, inner []blocks.Block, err error) {
	type child struct {
		cid  cid.Cid
		file uint64 // bytes of the file below it
		tree uint64 // encoded bytes of the tree below it, the link's Tsize
	}
	level := make([]child, m.Len())
	for i := range level {
		c := m.CID(i)
		if !c.Defined() {
			return cid.Undef, nil, fmt.Errorf("UnixFS DAG of %d bytes: CID of chunk %d is not known", m.Size(), i)
		}
		_, n := m.cut.Range(i)
		level[i] = child{cid: c, file: uint64(n), tree: uint64(n)}
	}
	for len(level) > 1 {
		parents := make([]child, 0, (len(level)+dagWidth-1)/dagWidth)
		for start := 0; start < len(level); start += dagWidth {
			fs := unixfs.NewFSNode(unixfs.TFile)
			node := new(merkledag.ProtoNode)
			if err := node.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf,
				MhType: chunkPrefix.MhType}); err != nil {
				return cid.Undef, nil, fmt.Errorf("UnixFS DAG: %w", err)
			}
			p := child{}
			for _, c := range level[start:min(start+dagWidth, len(level))] {
				fs.AddBlockSize(c.file)
				if err := node.AddRawLink("", &ipld.Link{Size: c.tree, Cid: c.cid}); err != nil {
					return cid.Undef, nil, fmt.Errorf("UnixFS DAG: %w", err)
				}
				p.file += c.file
				p.tree += c.tree
			}
			data, err := fs.GetBytes()
			if err != nil {
				return cid.Undef, nil, fmt.Errorf("UnixFS DAG: %w", err)
			}
			node.SetData(data)
			raw, err := node.EncodeProtobuf(true)
			if err != nil {
				return cid.Undef, nil, fmt.Errorf("UnixFS DAG: %w", err)
			}
			p.cid = node.Cid()
			p.tree += uint64(len(raw))
			b, err := blocks.NewBlockWithCid(raw, p.cid)
			if err != nil {
				return cid.Undef, nil, fmt.Errorf("UnixFS DAG: %w", err)
			}
			inner = append(inner, b)
			parents = append(parents, p)
		}
		level = parents
	}
	return level[0].cid, inner, nil
}
