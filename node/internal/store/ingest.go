package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// ErrIncomplete: chunks of the ingest are still missing.
var ErrIncomplete = errors.New("ingest is not complete")

// Ingest is a blob that is arriving. Its chunks may be written in any order and are readable as soon as they are there;
// the blob itself is not visible until Commit. Its methods may be called concurrently.
type Ingest struct {
	store  *Store
	digest digest.Digest
	size   int64
	cut    content.Cut
	origin Origin

	// writing lets one writer at a time into the file, as the kernel does: there the others would spin until it is
	// their turn.
	writing   sync.Mutex
	follow    follower
	commits   sync.Mutex // one Commit, Discard or Close at a time
	renamed   *entry     // what a commit has made of it; guarded by commits
	lost      error      // of fsync; guarded by commits
	window    *window    // nil: the whole is to be held; set once
	earlier   partial    // what was there before; set once
	inherited inherited
	proved    *content.ChunkMap // of one that was hashed before it was opened: its map; else nil
	closed    chan struct{}

	mu      sync.RWMutex // guards what follows
	phase   phase
	file    *os.File
	journal *journal
	chunks  *content.ChunkMap
	present []byte // bit i%8 of byte i/8: chunk i is on disk
	missing int
	bytes   int64
	bySum   map[[sumSize]byte]int32
	// doubtful are chunks that are not present; nil where there never were any. It changes under writing too.
	doubtful *doubtful
}

// Source tells apart where the chunks of ingests come from. What one source gave is not mixed with what another did as
// long as the digest of the whole has not been checked: each has a partial ingest of its own.
type Source [8]byte

// partialID names a partial ingest.
type partialID struct {
	digest digest.Digest
	source Source
}

// path is where the chunks are. The zero source's is in containerd's layout.
func (id partialID) path(ingestDir string) string {
	path := flat(ingestDir, id.digest)
	if id.source != (Source{}) {
		path += "." + hex.EncodeToString(id.source[:])
	}
	return path
}

// partialOf reads off the path of a partial ingest, or of its journal, which one it is.
func partialOf(path string) (id partialID, ok bool) {
	path = strings.TrimSuffix(path, journalSuffix)
	if mark := filepath.Ext(path); mark != "" {
		path = strings.TrimSuffix(path, mark)
		source, err := hex.DecodeString(mark[1:])
		if err != nil || len(source) != len(id.source) {
			return partialID{}, false
		}
		id.source = Source(source)
	}
	id.digest, ok = fileDigest(path)
	return id, ok
}

type phase uint8

const (
	phaseOpening phase = iota
	phaseOpen
	phaseRenamed   // the file has its final name, but the commit has not ended
	phaseCommitted // the blob is visible
	phaseClosed
)

// Ingest opens the ingest of d, of size bytes, into a pool. It resumes a partial one of the same source and size that
// an earlier ingest left, and drops one of another size. It fails with ErrExists for a blob that is committed here,
// ErrBusy while another ingest of d is open, content.ErrNoSpace when size bytes could not be made room for, and
// content.ErrStorage where the disk refuses or hangs. Room itself is made for each chunk as it is written. The caller
// must Close it.
//
// The chunks of a partial ingest count as present, and each is hashed before it is given out; see inherit.go. One that
// was lost becomes absent.
func (s *Store) Ingest(d digest.Digest, size int64, origin Origin) (*Ingest, error) {
	ing, err := s.ingest(d, size, origin, nil)
	if err != nil {
		return nil, fmt.Errorf("ingest %s of %d bytes: %w", d, size, diskError(err))
	}
	return ing, nil
}

// ingest is Ingest. proved is the map of a blob every chunk of which is present and was hashed, as was the whole.
func (s *Store) ingest(d digest.Digest, size int64, origin Origin, proved *content.ChunkMap) (*Ingest, error) {
	ing, err := s.newIngest(d, size, origin)
	if err != nil {
		return nil, err
	}
	ing.proved = proved
	err = s.admit(ing)
	for other := s.committing(d); errors.Is(err, ErrBusy) && other != nil; other = s.committing(d) {
		<-other.closed // at most for the time of an fsync
		err = s.admit(ing)
	}
	if err != nil {
		return nil, err
	}
	if err := ing.open(); err != nil {
		_ = ing.Close()
		return nil, err
	}
	if proved != nil {
		ing.follow.skip()
	}
	ing.follow.kick()
	return ing, nil
}

// newIngest makes an ingest that claims nothing yet.
func (s *Store) newIngest(d digest.Digest, size int64, origin Origin) (*Ingest, error) {
	if _, err := content.DigestCID(d); err != nil {
		return nil, err
	}
	cut := origin.Grain.Cut(size)
	chunks, err := content.NewChunkMap(cut)
	if err != nil {
		return nil, err
	}
	ing := &Ingest{
		store: s, digest: d, size: size, cut: cut, origin: origin, chunks: chunks, missing: chunks.Len(),
		present: make([]byte, (chunks.Len()+7)/8), bySum: make(map[[sumSize]byte]int32), closed: make(chan struct{}),
		inherited: inherited{news: make(chan struct{})},
	}
	ing.follow = follower{ing: ing, sum: d.Algorithm().Hash(), done: make(chan struct{}), stop: make(chan struct{})}
	if ing.follow.other, err = newOther(cut); err != nil {
		return nil, err
	}
	return ing, s.health.hung()
}

// committing is the open ingest of d that the store itself only has to commit, nil where there is none.
func (s *Store) committing(d digest.Digest) *Ingest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if g := s.ingests[d]; g != nil && g.proved != nil {
		return g
	}
	return nil
}

// open opens or makes the files. Until it ends nobody else knows the ingest but for its reserved size. The disk may
// take its time, so it holds no lock that those who look at every ingest wait for.
func (g *Ingest) open() error {
	g.commits.Lock() // so that the store may be closed before or after, but not meanwhile
	defer g.commits.Unlock()
	s, path := g.store, g.path()
	file, err := g.create(path)
	if err != nil {
		return err
	}
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	j, err := openJournal(s.disk, path+journalSuffix, g.cut, g.origin)
	if err != nil {
		return err
	}
	g.setFiles(file, j)
	if fi.Size() != g.size { // the journal is about another file
		if err := j.reset(); err != nil {
			return err
		}
	}
	g.takeDoubtful()
	if err := g.resume(); err != nil {
		return err
	}
	if j.fresh && g.doubtful == nil { // whatever the file holds is not known to be of this blob
		if err := s.disk.truncate(file, 0); err != nil {
			return err
		}
	}
	if err := s.disk.truncate(file, g.size); err != nil {
		return err
	}
	g.setPhase(phaseOpen)
	if g.inherited.chunks != nil {
		g.follow.group.Go(g.checkAll)
	}
	return nil
}

// create opens or makes the file of the chunks. It fails with content.ErrClosed once the ingest has been closed. The
// caller holds g.commits.
func (g *Ingest) create(path string) (*os.File, error) {
	if g.currentPhase() != phaseOpening {
		return nil, content.ErrClosed
	}
	if err := g.store.disk.mkdirAll(filepath.Dir(path)); err != nil {
		return nil, err
	}
	file, err := g.store.disk.create(path)
	if err == nil {
		g.setFiles(file, nil)
	}
	return file, err
}

func (g *Ingest) setFiles(file *os.File, j *journal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.file, g.journal = file, j
}

// resume takes over the chunks that the journal has. Each is to be hashed yet.
func (g *Ingest) resume() error {
	if g.journal.was != g.cut {
		return g.recut()
	}
	for i := range g.chunks.Len() {
		c, ok := g.journal.chunk(i)
		if !ok {
			continue
		}
		if err := g.note(i, c); err != nil {
			return err
		}
		if g.proved == nil {
			g.inherit(i)
		}
	}
	if g.doubtful != nil { // it is signed when the last of it goes
		return nil
	}
	return g.journal.sign()
}

// recut resumes what came in leaves in pieces, or the other way round. Of what is there each chunk is hashed: such a
// blob is no larger than 256 MiB.
func (g *Ingest) recut() error {
	was := g.journal.was
	there := make([]bool, was.Len())
	for i := range there {
		c, ok := g.journal.chunk(i)
		if ok {
			sum, err := g.hash(was.Range(i))
			if errors.Is(err, content.ErrClosed) || errors.Is(err, content.ErrStorage) {
				return err
			}
			ok = err == nil && bytes.Equal(sum, cidSum(c))
		}
		there[i] = ok
	}
	anew := make(map[int]cid.Cid)
	for i := range g.cut.Len() {
		off, n := g.cut.Range(i)
		if slices.Contains(there[was.At(off):was.At(off+n-1)+1], false) {
			continue
		}
		sum, err := g.hash(off, n)
		if err != nil {
			return err
		}
		anew[i] = content.SumCID([sumSize]byte(sum))
	}
	if err := g.store.disk.truncate(g.journal.file, 0); err != nil { // only now: nothing is lost of what cannot be read
		return err
	}
	for _, i := range slices.Sorted(maps.Keys(anew)) {
		c := anew[i]
		if err := errors.Join(g.journal.set(i, c), g.note(i, c)); err != nil {
			return err
		}
	}
	return g.journal.sign()
}

// hash is the sum of a part of the file. It fails with content.ErrStorage where the disk hangs: whoever opens the
// ingest waits for it.
func (g *Ingest) hash(off, n int64) ([]byte, error) {
	if g.store.stopping.Err() != nil {
		return nil, content.ErrClosed
	}
	file := g.file
	return ask(g.store, file.Name(), func() ([]byte, error) {
		h := digest.SHA256.Hash()
		err := hashRange(h, file, off, n)
		return h.Sum(nil), err
	})
}

// note counts chunk i as present.
func (g *Ingest) note(i int, c cid.Cid) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.chunks.Set(i, c); err != nil {
		return err
	}
	_, n := g.cut.Range(i)
	g.present[i/8] |= 1 << (i % 8)
	g.missing--
	g.bytes += n
	g.doubtful.drop(i, n)
	sum := [sumSize]byte(cidSum(c))
	if _, ok := g.bySum[sum]; !ok {
		g.bySum[sum] = int32(i)
	}
	return nil
}

// id names what is left of the ingest when it is closed before its commit.
func (g *Ingest) id() partialID { return partialID{g.digest, g.origin.Source} }

func (g *Ingest) path() string { return g.id().path(g.store.ingestDir) }

// Size is the blob's size in bytes.
func (g *Ingest) Size() int64 { return g.size }

// Digest is the blob's digest.
func (g *Ingest) Digest() digest.Digest { return g.digest }

// Cut is how the blob is cut into the chunks that are written.
func (g *Ingest) Cut() content.Cut { return g.cut }

// Len is the number of chunks.
func (g *Ingest) Len() int { return g.chunks.Len() }

// Has reports whether chunk i is present.
func (g *Ingest) Has(i int) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.has(i)
}

func (g *Ingest) has(i int) bool {
	return i >= 0 && i < g.chunks.Len() && g.present[i/8]&(1<<(i%8)) != 0
}

// CID is the CID of chunk i, cid.Undef while it is not present.
func (g *Ingest) CID(i int) cid.Cid {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if !g.has(i) {
		return cid.Undef
	}
	return g.chunks.CID(i)
}

// Map is a copy of the chunk map as far as chunks are present.
func (g *Ingest) Map() *content.ChunkMap {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.chunks.Clone()
}

// Complete reports whether every chunk is present.
func (g *Ingest) Complete() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.missing == 0
}

// taken is what the ingest takes on disk, in bytes.
func (g *Ingest) taken() int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.window != nil:
		return g.cut.Start(g.window.used)
	case g.phase == phaseOpening:
		return max(g.bytes, g.earlier.bytes)
	}
	return g.bytes + g.doubtful.size()
}

// received is how many bytes of chunks there are, doubtful ones among them.
func (g *Ingest) received() int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.bytes + g.doubtful.size()
}

// WriteChunk stores chunk i. The caller has checked that data hashes to c. A chunk that is present already is left
// alone; it is an error if it has another CID, because one of the two is not of this blob. It fails with
// content.ErrNoSpace on a full disk and with content.ErrStorage where the disk refuses, after which the ingest is as it
// was.
func (g *Ingest) WriteChunk(i int, c cid.Cid, data []byte) error {
	err := g.writeChunk(i, c, data)
	g.store.events.deliver() // of what had to go for it
	if err != nil {
		return fmt.Errorf("ingest %s: write chunk %d: %w", g.digest, i, err)
	}
	return nil
}

func (g *Ingest) writeChunk(i int, c cid.Cid, data []byte) error {
	if i < 0 || i >= g.chunks.Len() {
		return fmt.Errorf("the blob has %d chunks", g.chunks.Len())
	}
	off, n := g.cut.Range(i)
	switch {
	case int64(len(data)) != n:
		return fmt.Errorf("%d bytes, want %d", len(data), n)
	case !isChunkCID(c):
		return fmt.Errorf("CID %s is not CIDv1, raw, sha2-256", c)
	}
	if err := g.check(i); err != nil && !errors.Is(err, errLostChunk) {
		return err
	}
	g.writing.Lock()
	defer g.writing.Unlock()

	g.mu.RLock()
	phase, file, present, had := g.phase, g.file, g.has(i), g.chunks.CID(i)
	g.mu.RUnlock()
	switch {
	case present && had != c:
		return fmt.Errorf("it is present as %s, not %s: %w", had, c, content.ErrDigestMismatch)
	case present:
		return nil
	case phase != phaseOpen:
		return content.ErrClosed
	}
	if g.window != nil {
		return g.writeSlot(i, c, data)
	}
	if !g.doubtful.has(i) { // else its room is taken already
		release, err := g.store.reserve(g.origin.Pool, n)
		if err != nil {
			return g.failedWrite(err)
		}
		defer release()
	}
	// The data goes before its mark, so that a killed process leaves no mark without data.
	if err := g.store.disk.writeAt(file, data, off); err != nil {
		return g.failedWrite(err)
	}
	if err := g.journal.set(i, c); err != nil {
		return g.failedWrite(err)
	}
	if g.doubtful.has(i) && g.doubtful.size() == n { // the last of them
		if err := g.journal.sign(); err != nil {
			return g.failedWrite(err)
		}
	}
	err := g.note(i, c)
	g.store.metrics.ingested.Add(float64(n))
	g.follow.kick()
	return err
}

func (g *Ingest) failedWrite(err error) error {
	switch {
	case errors.Is(err, os.ErrClosed):
		return content.ErrClosed
	case errors.Is(err, content.ErrNoSpace):
		g.store.metrics.refused(g.origin.Pool)
		g.store.wakeMaintainer()
	}
	return err
}

// ReadChunk reads into p from the present chunk i at offset off within it, as io.ReaderAt does.
func (g *Ingest) ReadChunk(i int, p []byte, off int64) (int, error) {
	if g.window != nil {
		return g.readSlot(i, p, off)
	}
	file, start, n, err := g.chunkFile(i)
	if err == nil {
		err = g.ready(i, file)
	}
	if err != nil {
		return 0, fmt.Errorf("ingest %s: read chunk %d: %w", g.digest, i, err)
	}
	return io.NewSectionReader(file, start, n).ReadAt(p, off)
}

// SectionWriterTo opens n bytes from offset off of the present chunk i. The result also is an io.WriterTo, and sends by
// sendfile(2) where Blob.Range does. The caller closes it; it outlives the ingest.
func (g *Ingest) SectionWriterTo(ctx context.Context, i int, off, n int64) (io.ReadCloser, error) {
	if g.window != nil {
		return g.slotSection(i, off, n)
	}
	file, start, size, err := g.chunkFile(i)
	if err == nil && (off < 0 || n < 0 || off > size-n) {
		err = fmt.Errorf("range of %d bytes at %d is outside its %d bytes", n, off, size)
	}
	if err == nil {
		err = g.ready(i, file)
	}
	var sec *section
	if err == nil {
		sec, err = g.store.section(ctx, file, start+off, n)
	}
	if errors.Is(err, os.ErrClosed) { // it was closed in between
		err = content.ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("ingest %s: chunk %d: %w", g.digest, i, err)
	}
	return sec, nil
}

func (g *Ingest) chunkFile(i int) (f *os.File, off, n int64, err error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.phase == phaseOpening || g.phase == phaseClosed:
		return nil, 0, 0, content.ErrClosed
	case !g.has(i):
		return nil, 0, 0, content.ErrNotFound
	}
	off, n = g.cut.Range(i)
	return g.file, off, n, nil
}

// lookup finds a present chunk by the hash of its CID.
func (g *Ingest) lookup(sum [sumSize]byte) (i int, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.phase == phaseOpening || g.phase == phaseClosed {
		return 0, false
	}
	n, ok := g.bySum[sum]
	return int(n), ok
}

// Verify waits for the whole blob's digest, of which all but the tail has as a rule been computed while chunks arrived.
// It fails with ErrIncomplete while chunks are missing, or when one is found to have been lost, and with
// content.ErrDigestMismatch when the bytes are not the blob's; then Discard or Doubt ends the ingest.
func (g *Ingest) Verify(ctx context.Context) error {
	if err := g.verify(ctx); err != nil {
		return fmt.Errorf("ingest %s: verify: %w", g.digest, err)
	}
	return nil
}

func (g *Ingest) verify(ctx context.Context) error {
	g.mu.RLock()
	missing, lost := g.missing, g.inherited.news
	g.mu.RUnlock()
	if missing > 0 {
		return ErrIncomplete
	}
	select {
	case <-g.follow.done:
		return g.follow.result()
	default:
	}
	select {
	case <-g.follow.done:
		return g.follow.result()
	case <-lost:
		return ErrIncomplete
	case <-g.follow.stop:
		return content.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Commit makes the blob visible: it verifies, puts the bytes safely on disk under the blob's own name, and records
// them. Repeating it does nothing. When it fails the ingest is as it was, and Commit may be called again; but after a
// failed fsync nobody knows what is on disk, so then the ingest fails for good, and Close drops it.
func (g *Ingest) Commit(ctx context.Context, mediaType string) error {
	if err := g.commit(ctx, mediaType); err != nil {
		return fmt.Errorf("ingest %s: commit: %w", g.digest, err)
	}
	return nil
}

func (g *Ingest) commit(ctx context.Context, mediaType string) error {
	g.commits.Lock()
	defer g.commits.Unlock()
	switch g.currentPhase() {
	case phaseCommitted:
		return nil
	case phaseOpen, phaseRenamed:
	default:
		return content.ErrClosed
	}
	if err := g.verify(ctx); err != nil {
		return err
	}
	if g.lost != nil {
		return g.lost
	}
	if err := g.store.disk.sync(g.file); err != nil {
		// The kernel reports lost pages once and forgets them, so a second fsync would tell nothing.
		g.lost = g.failedWrite(err)
		return g.lost
	}
	err := g.publish(mediaType)
	g.store.events.deliver()
	g.store.wakeMaintainer() // if it failed, that may be the index, which it makes again
	if err != nil {
		return g.failedWrite(err)
	}
	if err := g.store.dropPartials(g.digest); err != nil { // of other sources
		g.store.log.Warn("a partial ingest of a committed blob stays until the next start", "digest", g.digest,
			"error", err)
	}
	return nil
}

// publish gives the synced file its name and record.
func (g *Ingest) publish(mediaType string) error {
	s, path := g.store, g.store.blobPath(g.digest)
	defer s.lockDigest(g.digest)()
	e := newEntry(g.digest, g.size, mediaType, time.Now())
	e.pool = g.origin.Pool
	if g.currentPhase() == phaseOpen {
		// The map and the index come before the rename: without the blob's file neither means anything, and recovery
		// removes them; the blob's file, once it is there, has both.
		chunks := g.maps()
		if err := metaOf(e, chunks).write(s.disk, path+mapSuffix); err != nil {
			return err
		}
		if err := s.index.put(indexed{entry: e, chunks: chunks}); err != nil {
			return err
		}
		if err := s.disk.rename(g.path(), path); err != nil {
			return err
		}
		e.checks.noteWhole(g.file, g.size) // the digest was computed from these pages
		g.renamed = e
		g.setPhase(phaseRenamed)
		g.journal.remove()
	}
	e = g.renamed
	if err := s.disk.syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	s.dropRuntimeMap(g.digest)
	s.mu.Lock()
	s.enlist(e)
	delete(s.ingests, g.digest)
	s.events.push(Event{Type: Committed, Info: e.info(s.pinned)})
	s.mu.Unlock()
	g.setPhase(phaseCommitted)
	return nil
}

// maps is the map of the leaves with that of the pieces, of a blob whose digest is known to match.
func (g *Ingest) maps() *content.ChunkMap {
	leaves, other := g.chunks, g.follow.other
	switch {
	case g.proved != nil:
		return g.proved
	case other == nil:
		return leaves
	case g.cut == content.CutLeaves(g.size):
		leaves.SetPieces(other.Map())
	default:
		leaves = other.Map()
		leaves.SetPieces(g.chunks)
	}
	return leaves
}

func (g *Ingest) currentPhase() phase {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.phase
}

func (g *Ingest) setPhase(p phase) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase = p
}

// fate is what becomes of the bytes of an ingest that was not committed.
type fate uint8

const (
	fateDrop fate = iota
	fateKeep
	fateDoubt // see Doubt
)

// Discard ends the ingest and drops its bytes. After Commit it only closes.
func (g *Ingest) Discard() error { return g.end(fateDrop) }

// Close ends the ingest. The chunks of one that was not committed are kept for a later ingest of the same digest,
// unless they were found not to be the blob's, or cannot be read back, or some are doubtful. Closing twice does
// nothing.
func (g *Ingest) Close() error {
	then := fateKeep
	select {
	case <-g.follow.done:
		if g.follow.result() != nil {
			then = fateDrop
		}
	default:
	}
	return g.end(then)
}

func (g *Ingest) end(then fate) error {
	g.commits.Lock()
	defer g.commits.Unlock()
	g.writing.Lock() // a write that is under way must not end in a file that the next ingest has by then
	g.mu.Lock()
	was := g.phase
	g.phase = phaseClosed
	file, j := g.file, g.journal
	g.mu.Unlock()
	g.writing.Unlock()
	if was == phaseClosed {
		return nil
	}
	defer close(g.closed)
	g.follow.end()
	var errs []error
	if file != nil {
		errs = append(errs, file.Close())
	}
	if j != nil {
		errs = append(errs, j.close())
	}
	if was != phaseCommitted {
		if g.lost != nil || g.window != nil || g.doubtful.size() > 0 {
			then = fateDrop
		}
		errs = append(errs, g.leave(was, then))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("ingest %s: close: %w", g.digest, err)
	}
	return nil
}

// leave gives up the claim on the digest, and does with the partial bytes what is to become of them.
func (g *Ingest) leave(was phase, then fate) error {
	s, path := g.store, g.path()
	left := partial{size: g.size, bytes: g.received(), used: time.Now(), pool: g.origin.Pool,
		cut: g.cut}
	var err error
	if then == fateDoubt {
		left.doubtful = g.allDoubtful()
		if err = s.disk.remove(path + journalSuffix); err != nil {
			then = fateDrop
		}
	}
	switch {
	case was == phaseOpening && g.earlier.bytes > 0:
		left = g.earlier // it could not be opened; perhaps next time
	case was == phaseRenamed:
		left.bytes = 0 // it has its final name already, and the next start finds it there
	case then == fateDrop || left.bytes == 0:
		left.bytes = 0
		err = errors.Join(err, s.disk.remove(path+journalSuffix), s.disk.remove(path))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ingests, g.digest)
	if left.bytes > 0 {
		s.partials[g.id()] = left
	}
	return err
}

// follower computes the blob's digest behind the arriving chunks: whenever the chunk that is next in order is present,
// a goroutine hashes on from there, out of the page cache, until it meets a gap.
type follower struct {
	ing  *Ingest
	done chan struct{} // closed once the result is known
	stop chan struct{} // closed by end

	mu      sync.Mutex
	running bool
	stopped bool
	ended   bool
	next    int
	err     error
	group   sync.WaitGroup

	// used by the running goroutine only
	sum   hash.Hash
	other *content.Summer // of the chunks as the ingest does not cut them; nil where both are the same
}

// newOther makes the sums of the leaves of a blob that comes in pieces, or of the pieces of one that comes in leaves.
func newOther(cut content.Cut) (*content.Summer, error) {
	leaves, pieces := content.CutLeaves(cut.Size()), content.Pieces.Cut(cut.Size())
	switch {
	case leaves == pieces:
		return nil, nil
	case cut == leaves:
		return content.NewSummer(pieces)
	}
	return content.NewSummer(leaves)
}

// skip takes the digest for proved, if every chunk is there.
func (f *follower) skip() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ing.Complete() {
		f.next = f.ing.Len()
		f.finish(nil)
	}
}

// kick starts the goroutine if there is something for it to do.
func (f *follower) kick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running || f.stopped || f.ended || !f.ing.Has(f.next) {
		return
	}
	f.running = true
	f.group.Go(f.run)
}

func (f *follower) run() {
	var sums io.Writer = f.sum
	if f.other != nil {
		sums = io.MultiWriter(f.sum, f.other)
	}
	for i, ok := f.advance(nil); ok; {
		off, n := f.ing.cut.Range(i)
		file := f.ing.file
		err := f.ing.store.watched("hash", file.Name(), false, func() error {
			if err := f.ing.check(i); err != nil {
				return err
			}
			return hashRange(sums, file, off, n)
		})
		i, ok = f.advance(&step{err: err})
	}
}

// step is the outcome of hashing one chunk.
type step struct{ err error }

// advance takes the outcome of the chunk just hashed, if any, and says which chunk to hash now. Where it says none, the
// goroutine must end: the next kick may start another.
func (f *follower) advance(last *step) (i int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last != nil && last.err == nil {
		f.next++
	}
	switch {
	case f.stopped:
	case last != nil && last.err != nil && !errors.Is(last.err, errLostChunk):
		f.finish(fmt.Errorf("hash chunk %d: %w: %w", f.next, content.ErrStorage, last.err))
	case f.next == f.ing.Len():
		f.finish(f.compare())
	case f.ing.Has(f.next):
		return f.next, true
	}
	f.running = false
	return 0, false
}

func (f *follower) compare() error {
	d := f.ing.digest
	if got := digest.NewDigest(d.Algorithm(), f.sum); got != d {
		return fmt.Errorf("the bytes are those of %s: %w", got, content.ErrDigestMismatch)
	}
	return nil
}

func (f *follower) finish(err error) {
	f.ended, f.err = true, err
	close(f.done)
}

func (f *follower) result() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// end stops the goroutine and waits for it, at most for the time of one chunk.
func (f *follower) end() {
	f.mu.Lock()
	if !f.stopped {
		f.stopped = true
		close(f.stop)
	}
	f.mu.Unlock()
	f.group.Wait()
}

func isChunkCID(c cid.Cid) bool {
	return c.Version() == 1 && c.Type() == cid.Raw && cidSum(c) != nil
}

// Put ingests and commits a blob that is at hand whole. It fails with content.ErrDigestMismatch when r does not give
// exactly size bytes with digest d, and otherwise as Ingest does. A blob that exists already is left alone.
func (s *Store) Put(ctx context.Context, d digest.Digest, r io.Reader, size int64) error {
	return s.PutInto(ctx, Images, d, r, size)
}

// PutInto is Put into a pool.
func (s *Store) PutInto(ctx context.Context, pool Pool, d digest.Digest, r io.Reader, size int64) error {
	if err := s.put(ctx, pool, d, r, size); err != nil {
		return fmt.Errorf("put %s: %w", d, err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, pool Pool, d digest.Digest, r io.Reader, size int64) error {
	ing, err := s.Ingest(d, size, Origin{Pool: pool})
	if errors.Is(err, ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	err = ing.fill(ctx, content.NewVerifier(r, d, size))
	if err == nil {
		err = ing.Commit(ctx, "")
	}
	if err != nil {
		return errors.Join(err, ing.Discard())
	}
	return ing.Close()
}

// fill writes the missing chunks from a reader over the whole blob.
func (g *Ingest) fill(ctx context.Context, r io.Reader) error {
	buf := make([]byte, min(g.size, g.cut.Chunk()))
	for i := range g.Len() {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, n := g.cut.Range(i)
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if err := g.WriteChunk(i, content.ChunkCID(buf[:n]), buf[:n]); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, r) // the verifier's verdict comes with the end
	return err
}
