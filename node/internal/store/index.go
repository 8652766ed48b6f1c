package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// index maps hashes of chunks and of inner UnixFS nodes to blobs, and keeps a record of each blob. All of it can be
// made again from the files, so it is never synced: a killed process loses nothing of it (the page cache has it), and
// after a crash of the machine it is thrown away. What it says is only a hint, to be checked against the table of
// blobs.
type index struct{ in atomic.Pointer[database] }

func (x *index) view(f func(*bolt.Tx) error) error   { return x.in.Load().view(f) }
func (x *index) update(f func(*bolt.Tx) error) error { return x.in.Load().update(f) }
func (x *index) broken() bool                        { return x.in.Load().broken.Load() }
func (x *index) sync() error                         { return x.in.Load().do(x.in.Load().db.Sync) }
func (x *index) close() error                        { return x.in.Load().do(x.in.Load().db.Close) }

// replace goes over to the index that by has. What was there before is not closed, because that may touch damaged
// pages.
func (x *index) replace(by *index) { x.in.Store(by.in.Load()) }

var (
	bucketBlobs = []byte("blobs") // digest -> record
	// SHA-256 of the chunk, multihash of the blob -> chunk number, big endian; see ofPieces
	bucketChunks = []byte("chunks")
	bucketNodes  = []byte("nodes") // SHA-256 of the node, multihash of the blob -> the node's bytes
)

// databaseError gives bbolt's errors the names that callers know: a closed database is content.ErrClosed and a full
// disk content.ErrNoSpace.
func databaseError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return fmt.Errorf("%w: %w", content.ErrClosed, err)
	}
	return diskError(err)
}

// errDatabaseDamaged: a page of a database does not make sense or cannot be read.
var errDatabaseDamaged = errors.New("database is damaged")

// database is a bbolt file that may be damaged while it is open. Damage ends its use, and not the process.
type database struct {
	db     *bolt.DB
	broken *atomic.Bool
}

func (b database) view(f func(*bolt.Tx) error) error {
	return b.do(func() error { return b.db.View(f) })
}
func (b database) update(f func(*bolt.Tx) error) error {
	return b.do(func() error { return b.db.Update(f) })
}

// do runs f on the database. After damage it runs nothing any more: locks of bbolt may be held for ever.
func (b database) do(f func() error) error {
	if b.broken.Load() {
		return fmt.Errorf("%s: %w", b.db.Path(), errDatabaseDamaged)
	}
	err := guard(f)
	if errors.Is(err, errDatabaseDamaged) {
		b.broken.Store(true)
	}
	return databaseError(err)
}

// record is what the index keeps of a blob.
type record struct {
	Size      int64  `cbor:"1,keyasint"`
	MediaType string `cbor:"2,keyasint,omitempty"`
	Committed int64  `cbor:"3,keyasint"` // nanoseconds of Unix time
	Root      []byte `cbor:"4,keyasint"`
	Runtime   bool   `cbor:"5,keyasint,omitempty"`
	ModTime   int64  `cbor:"6,keyasint,omitempty"`
	LastUsed  int64  `cbor:"7,keyasint,omitempty"` // nanoseconds of Unix time
	Hits      uint32 `cbor:"8,keyasint,omitempty"`
	Pool      Pool   `cbor:"9,keyasint,omitempty"`
}

func openIndex(path string) (*index, error) {
	// The free list is kept in the file: making it anew means a walk in a goroutine of bbolt's own, where damage would
	// end the process instead of this function.
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoSync: true, NoGrowSync: true, FreelistType: bolt.FreelistMapType, Timeout: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", path, diskError(err))
	}
	db.AllocSize = 1 << 20
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketBlobs, bucketChunks, bucketNodes} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open index %s: %w", path, diskError(err)), db.Close())
	}
	x := new(index)
	x.in.Store(&database{db: db, broken: new(atomic.Bool)})
	return x, nil
}

// guard runs f on a database whose file may be damaged, and makes an error of what would end the process: bbolt panics
// on a damaged page, and the kernel faults on one that is unreadable or past the end of the file.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDatabaseDamaged, r)
		}
	}()
	return f()
}

// walk reads every page of a database once, so that damage shows here rather than later.
func walk(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, _ []byte) error {
				if len(k) == 0 {
					return fmt.Errorf("%w: a key is empty", errDatabaseDamaged)
				}
				return nil
			})
		})
	})
}

// indexed is a blob with all that the index keeps of it.
type indexed struct {
	entry  *entry
	chunks *content.ChunkMap
}

// put records blobs with their chunks and inner nodes in one transaction, and fills in each entry's root.
func (x *index) put(blobs ...indexed) error {
	return x.update(func(tx *bolt.Tx) error {
		for _, b := range blobs {
			if err := putBlob(tx, b); err != nil {
				return fmt.Errorf("index %s: %w", b.entry.digest, err)
			}
		}
		return nil
	})
}

func putBlob(tx *bolt.Tx, b indexed) error {
	keys, err := blobKeys(b.entry.digest, b.chunks)
	if err != nil {
		return err
	}
	chunks := tx.Bucket(bucketChunks)
	put := func(keys [][]byte, mark uint32) error {
		for i, k := range slices.Backward(keys) { // so that the first of equal chunks stays
			if err := chunks.Put(k, binary.BigEndian.AppendUint32(nil, uint32(i)|mark)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(put(keys.pieces, ofPieces), put(keys.chunks, 0)); err != nil {
		return err
	}
	nodes := tx.Bucket(bucketNodes)
	for i, k := range keys.nodes {
		if err := nodes.Put(k, keys.raw[i]); err != nil {
			return err
		}
	}
	if !b.entry.root.Defined() { // else the entry may be in use, and its root is the same
		b.entry.root = keys.root
	}
	return putRecord(tx, b.entry)
}

func putRecord(tx *bolt.Tx, e *entry) error {
	v, err := cbor.Marshal(e.record())
	if err != nil {
		return err
	}
	return tx.Bucket(bucketBlobs).Put([]byte(e.digest), v)
}

// refresh writes the records of blobs that are still in the index.
func (x *index) refresh(entries ...*entry) error {
	return x.update(func(tx *bolt.Tx) error {
		for _, e := range entries {
			if tx.Bucket(bucketBlobs).Get([]byte(e.digest)) == nil {
				continue
			}
			if err := putRecord(tx, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// remove forgets a blob. Without its chunk map only the record goes: what is left of it is not found by lookup, and is
// right again should the blob return.
func (x *index) remove(d digest.Digest, m *content.ChunkMap) error {
	return x.update(func(tx *bolt.Tx) error {
		if m != nil {
			keys, err := blobKeys(d, m)
			if err != nil {
				return err
			}
			for _, k := range append(keys.chunks, keys.pieces...) {
				if err := tx.Bucket(bucketChunks).Delete(k); err != nil {
					return err
				}
			}
			for _, k := range keys.nodes {
				if err := tx.Bucket(bucketNodes).Delete(k); err != nil {
					return err
				}
			}
		}
		return tx.Bucket(bucketBlobs).Delete([]byte(d))
	})
}

// records calls f with every blob's record.
func (x *index) records(f func(digest.Digest, record) error) error {
	return x.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketBlobs).ForEach(func(k, v []byte) error {
			var r record
			if err := cbor.Unmarshal(v, &r); err != nil {
				return fmt.Errorf("index record of %s: %w", k, err)
			}
			return f(digest.Digest(k), r)
		})
	})
}

// ofPieces marks the number of a piece. Those of leaves are below 1<<20.
const ofPieces = 1 << 31

// chunk calls f with each blob and chunk number that the hash is indexed under, until f returns true.
func (x *index) chunk(sum []byte, f func(d digest.Digest, g content.Grain, i int) bool) error {
	return x.lookup(bucketChunks, sum, func(d digest.Digest, v []byte) bool {
		if len(v) != 4 {
			return false
		}
		n, g := binary.BigEndian.Uint32(v), content.Leaves
		if n&ofPieces != 0 {
			g = content.Pieces
		}
		return f(d, g, int(n&^ofPieces))
	})
}

// node calls f with each blob of which the hash is an inner node, and the node's bytes, until f returns true. The bytes
// are only valid within f.
func (x *index) node(sum []byte, f func(d digest.Digest, raw []byte) bool) error {
	return x.lookup(bucketNodes, sum, f)
}

func (x *index) lookup(bucket, sum []byte, f func(digest.Digest, []byte) bool) error {
	return x.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, v := c.Seek(sum); bytes.HasPrefix(k, sum); k, v = c.Next() {
			d, err := multihashDigest(k[len(sum):])
			if err != nil {
				return fmt.Errorf("index key %x: %w", k, err)
			}
			if f(d, v) {
				return nil
			}
		}
		return nil
	})
}

// sumSize is the length of a SHA-256 sum in bytes.
const sumSize = 32

type keys struct {
	root   cid.Cid
	chunks [][]byte
	pieces [][]byte
	nodes  [][]byte
	raw    [][]byte // of nodes
}

func blobKeys(d digest.Digest, m *content.ChunkMap) (keys, error) {
	c, err := content.DigestCID(d)
	if err != nil {
		return keys{}, err
	}
	root, inner, err := m.DAG()
	if err != nil {
		return keys{}, err
	}
	key := func(c2 cid.Cid) []byte { return append(cidSum(c2), c.Hash()...) }
	k := keys{root: root, chunks: make([][]byte, m.Len())}
	for i := range k.chunks {
		k.chunks[i] = key(m.CID(i))
	}
	if pieces := m.Pieces(); pieces != nil && pieces != m {
		for i := range pieces.Len() {
			k.pieces = append(k.pieces, key(pieces.CID(i)))
		}
	}
	for _, b := range inner {
		k.nodes = append(k.nodes, key(b.Cid()))
		k.raw = append(k.raw, b.RawData())
	}
	return k, nil
}

// cidSum is a fresh copy of the hash that a CID over SHA2-256 carries, nil for other hash functions.
func cidSum(c cid.Cid) []byte {
	h, err := mh.Decode(c.Hash())
	if err != nil || h.Code != mh.SHA2_256 || len(h.Digest) != sumSize {
		return nil
	}
	return bytes.Clone(h.Digest)
}

func multihashDigest(h []byte) (digest.Digest, error) {
	return content.CIDDigest(cid.NewCidV1(cid.Raw, mh.Multihash(h)))
}
