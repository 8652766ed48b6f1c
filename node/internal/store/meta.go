package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/fxamacker/cbor/v2"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// meta is what the file <blob>.map says about the blob beside it: all that cannot be told from the blob's bytes
// without hashing them. The index is made from these files.
type meta struct {
	Digest    digest.Digest
	MediaType string
	// Committed is the time of the commit, in nanoseconds of Unix time.
	Committed int64
	// ModTime is the modification time, in nanoseconds of Unix time, of the runtime's file when its map was computed.
	// It is 0 for the store's own blobs.
	ModTime int64  `cbor:",omitempty"`
	Pool    Pool   `cbor:",omitempty"`
	Map     []byte // content.ChunkMap of the leaves, encoded
	// Pieces is that of the pieces. It is empty where those are the leaves, and of a blob that a release committed
	// which knew none.
	Pieces []byte `cbor:",omitempty"`

	chunks *content.ChunkMap
}

func metaOf(e *entry, chunks *content.ChunkMap) *meta {
	return &meta{
		Digest: e.digest, MediaType: e.mediaType, Committed: e.committed.UnixNano(), ModTime: e.modTime,
		Pool: e.pool, chunks: chunks,
	}
}

const mapSuffix = ".map"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// write puts the record at path, durably: a CBOR map and the CRC-32C of it, big endian.
func (m *meta) write(k disk, path string) error {
	chunks, err := m.chunks.MarshalBinary()
	if err != nil {
		return err
	}
	m.Map, m.Pieces = chunks, nil
	if pieces := m.chunks.Pieces(); pieces != nil && pieces != m.chunks {
		if m.Pieces, err = pieces.MarshalBinary(); err != nil {
			return err
		}
	}
	b, err := cbor.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the map of %s: %w", m.Digest, err)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if err := k.mkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	return k.writeFile(path, b)
}

// readMeta reads the record of d. It fails when the file is damaged or is about another digest.
func readMeta(path string, d digest.Digest) (*meta, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := decodeMeta(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if m.Digest != d {
		return nil, fmt.Errorf("%s: is about %s", path, m.Digest)
	}
	return m, nil
}

func decodeMeta(b []byte) (*meta, error) {
	if len(b) < 4 {
		return nil, errors.New("too short")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, errors.New("checksum does not match")
	}
	var m meta
	if err := cbor.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	m.chunks = new(content.ChunkMap)
	if err := m.chunks.UnmarshalBinary(m.Map); err != nil {
		return nil, err
	}
	if !m.chunks.Complete() {
		return nil, errors.New("chunk map is not complete")
	}
	if len(m.Pieces) == 0 {
		return &m, nil
	}
	pieces := new(content.ChunkMap)
	if err := pieces.UnmarshalBinary(m.Pieces); err != nil {
		return nil, err
	}
	if pieces.Cut() != content.Pieces.Cut(m.chunks.Size()) || !pieces.Complete() {
		return nil, errors.New("map of the pieces is not of this blob, or not complete")
	}
	m.chunks.SetPieces(pieces)
	return &m, nil
}
