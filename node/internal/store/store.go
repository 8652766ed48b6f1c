package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/content"
)

var (
	// ErrBusy: another ingest of the same digest is open.
	ErrBusy = errors.New("an ingest of this digest is open")
	// ErrInUse: another process has the store open.
	ErrInUse = errors.New("another process has the store open")
	// ErrExists: the blob is committed already.
	ErrExists = errors.New("blob exists")
	// ErrPinned: a pinned blob is not deleted.
	ErrPinned = errors.New("blob is pinned")
)

// Options configure a Store. Only Path is required.
type Options struct {
	// Path is the directory of the store. It is made if missing, and belongs to one process at a time.
	Path   string
	Limits Limits
	// RuntimePath is the root of containerd's content store (…/io.containerd.content.v1.content), read as a second
	// source of blobs and never written. Empty: none.
	RuntimePath string
	// OnEvent hears of blobs that were committed or removed, one after the other and in order, from any goroutine that
	// changes the store. No lock is held meanwhile that an arriving chunk waits for. It should return soon.
	OnEvent func(Event)
	// Holders tells how many other nodes hold a blob, as far as is known; those are evicted first. nil: not known.
	Holders func(digest.Digest) int
	// Logger hears of damage and of evictions. nil: slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics shoal_store_…; Close unregisters them. nil: none.
	Registerer prometheus.Registerer
	// FreeSpace is the number of free bytes of the file system that holds path. nil: statfs(2).
	FreeSpace func(path string) (int64, error)
	// ScrubRate bounds the reading of blobs only to check them, in bytes per second. 0: 64 MiB/s.
	ScrubRate int64
	// ScrubInterval is the time in which every blob is read and checked once. 0: never.
	ScrubInterval time.Duration
}

// EventType says what became of a blob.
type EventType uint8

const (
	// Committed: the blob can be had by Get.
	Committed EventType = iota + 1
	// Removed: the store's own file of the blob is gone: evicted, deleted or damaged. The runtime may still have it.
	Removed
)

func (t EventType) String() string {
	return map[EventType]string{Committed: "committed", Removed: "removed"}[t]
}

// Event is a change of the set of committed blobs.
type Event struct {
	Type EventType
	Info Info
}

// Info describes a committed blob.
type Info struct {
	Digest digest.Digest
	Size   int64 // bytes
	// MediaType is empty where nobody has told it.
	MediaType string
	// Root is the CID of the blob as a UnixFS file. It is undefined for a blob of the runtime whose chunk map has not
	// been computed yet.
	Root   cid.Cid
	Pinned bool
	// FromRuntime: the bytes are in the runtime's content store and not in this one.
	FromRuntime bool
	// LastUsed is the time of the last Get, block read or, before any, the commit. It is persisted lazily.
	LastUsed time.Time
}

// Usage is what the store takes and may take, in bytes but for Blobs.
type Usage struct {
	// Bytes is the size of the store's own committed blobs, and Blobs their number.
	Bytes int64
	Blobs int
	// PinnedBytes is the part of Bytes that is pinned.
	PinnedBytes int64
	// IngestBytes is what open ingests have received and partial ones of earlier days hold.
	IngestBytes int64
	// Capacity is the limit, of all pools together, 0 where there is none.
	Capacity int64
	// Models is the part of all this that is in the pool of models.
	Models PoolUsage
	// FreeDisk is the free space of the file system, -1 where it cannot be told.
	FreeDisk int64
}

// Store keeps blobs. Its methods may be called concurrently.
type Store struct {
	opts    Options
	log     *slog.Logger
	disk    disk
	health  health
	lock    *os.File // the locked session file
	boot    string
	index   *index
	state   *state
	metrics *metrics
	events  events

	blobsDir, ingestDir, runtimeMaps string

	// digestLocks serialise what changes the files of one committed blob, by a byte of its digest.
	digestLocks [64]sync.Mutex
	// room serialises admissions and reservations, so that two never take the same free bytes.
	room     sync.Mutex
	reserved [poolCount]int64   // bytes that are being written; guarded by room
	trimming sync.Mutex         // one trim at a time; taken before room
	pinning  sync.Mutex         // serialises changes of pins
	mapping  singleflight.Group // of the runtime's blobs
	reading  sync.Map           // the digests of those that are being mapped
	summing  summing
	wake     chan struct{}      // to the maintainer; holds one signal
	cancel   context.CancelFunc // of background, which Close ends
	workers  sync.WaitGroup
	// scrubbing bounds what is read only to be checked.
	scrubbing *rate.Limiter
	stopping  context.Context

	mu     sync.RWMutex // guards what follows; never held during I/O or a callback
	limits Limits
	catalog
	partials map[partialID]partial
	arrived  []partialID   // partials that were complete at the start; set once
	finished chan struct{} // closed once those are committed or given up
	pins     map[string][]digest.Digest
	pinned   pinCounts
	rejected map[digest.Digest]fileID // runtime files found not to match their digest
}

// catalog is the blobs that are known, with their sums, and those that are arriving.
type catalog struct {
	closed  bool
	blobs   map[digest.Digest]*entry
	held    [poolCount]holding // of own blobs
	ingests map[digest.Digest]*Ingest
}

// entry is a blob that the index knows: one of the store's own, or one of the runtime's whose chunk map was computed.
type entry struct {
	digest    digest.Digest
	size      int64
	mediaType string
	committed time.Time
	root      cid.Cid
	pool      Pool
	runtime   bool
	modTime   int64 // of the runtime's file

	lastUsed atomic.Int64 // nanoseconds of Unix time
	readers  atomic.Int32 // Blobs that are open
	hits     atomic.Uint32
	dirty    atomic.Bool // lastUsed or hits are newer than the index
	checks   checks
	unsaved  atomic.Pointer[content.ChunkMap] // made again from the bytes, and not written yet
}

// sameUse is the time within which uses of a blob count as one: a pull reads each chunk of a layer, and every node of a
// burst reads it, which says nothing about whether it will be wanted tomorrow (the "correlated reference period" of
// O'Neil, O'Neil and Weikum, The LRU-K Page Replacement Algorithm, 1993).
const sameUse = time.Minute

func (e *entry) touch(now time.Time) {
	last := e.lastUsed.Swap(now.UnixNano())
	if now.UnixNano()-last >= int64(sameUse) {
		e.hits.Add(1)
	}
	if !e.dirty.Load() {
		e.dirty.Store(true)
	}
}

// used is when the blob was last used, in Unix nanoseconds. A use in the future was noted before the clock was set
// back. It counts as one of now, or all other blobs would go before this one until that time.
func (e *entry) used(now time.Time) int64 {
	last := e.lastUsed.Load()
	if last <= now.UnixNano() {
		return last
	}
	if e.lastUsed.CompareAndSwap(last, now.UnixNano()) {
		e.dirty.Store(true)
	}
	return now.UnixNano()
}

func (e *entry) record() record {
	return record{
		Size: e.size, MediaType: e.mediaType, Committed: e.committed.UnixNano(), Root: e.root.Bytes(),
		Runtime: e.runtime, ModTime: e.modTime, LastUsed: e.lastUsed.Load(), Hits: e.hits.Load(), Pool: e.pool,
	}
}

func newEntry(d digest.Digest, size int64, mediaType string, committed time.Time) *entry {
	e := &entry{digest: d, size: size, mediaType: mediaType, committed: committed}
	e.lastUsed.Store(committed.UnixNano())
	return e
}

func (e *entry) info(pinned pinCounts) Info {
	return Info{
		Digest: e.digest, Size: e.size, MediaType: e.mediaType, Root: e.root, Pinned: pinned[e.digest] > 0,
		FromRuntime: e.runtime, LastUsed: time.Unix(0, e.lastUsed.Load()),
	}
}

func (s *Store) blobPath(d digest.Digest) string { return fanned(s.blobsDir, d) }

func (s *Store) mapPath(e *entry) string {
	if e.runtime {
		return fanned(s.runtimeMaps, e.digest) + mapSuffix
	}
	return s.blobPath(e.digest) + mapSuffix
}

// lockDigest takes d's files for the caller until the returned function runs.
func (s *Store) lockDigest(d digest.Digest) (unlock func()) {
	var h byte
	for i := range len(d) {
		h = h*31 + d[i]
	}
	l := &s.digestLocks[int(h)%len(s.digestLocks)]
	l.Lock()
	return l.Unlock
}

// entry looks a blob up. It fails with content.ErrClosed, and returns nil for what the index does not know.
func (s *Store) entry(d digest.Digest) (*entry, error) {
	if _, err := content.DigestCID(d); err != nil {
		return nil, err
	}
	return s.known(d)
}

// known is entry for a digest that need not be checked for being one.
func (s *Store) known(d digest.Digest) (*entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, content.ErrClosed
	}
	return s.blobs[d], nil
}

// Get opens a committed blob: the store's own, else the runtime's. It fails with content.ErrNotFound where neither has
// it, or where its file is damaged or cannot be opened, which costs the store its own blob; any other error is
// content.ErrStorage. The bytes are checked as they
// are read; see Blob.Range.
func (s *Store) Get(d digest.Digest) (*Blob, error) {
	e, err := s.entry(d)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", d, err)
	}
	var mu sync.Mutex
	var blob *Blob
	gone := false // whoever asked
	err = s.within(s.blobPath(d), func() error {
		b, err := s.get(d, e)
		mu.Lock()
		defer mu.Unlock()
		if gone && b != nil {
			return b.Close()
		}
		blob = b
		return err
	})
	mu.Lock()
	defer mu.Unlock()
	gone = true
	if err != nil {
		if blob != nil {
			err = errors.Join(err, blob.Close())
		}
		return nil, fmt.Errorf("get %s: %w", d, err)
	}
	return blob, nil
}

func (s *Store) get(d digest.Digest, e *entry) (*Blob, error) {
	if e != nil && !e.runtime {
		f, err := s.openOwn(e)
		if err == nil {
			e.touch(time.Now())
			return s.newBlob(d, e.size, f, e), nil
		}
		if !errors.Is(err, content.ErrNotFound) {
			return nil, diskError(err)
		}
	}
	f, info, e, err := s.openRuntime(d)
	if err != nil {
		return nil, diskError(err)
	}
	return s.newBlob(d, info.Size, f, e), nil
}

func (s *Store) newBlob(d digest.Digest, size int64, f *os.File, e *entry) *Blob {
	b := &Blob{digest: d, size: size, file: f, check: s.newChecker(d, size, e), release: func() {}}
	if e != nil {
		e.readers.Add(1)
		b.release = sync.OnceFunc(func() { e.readers.Add(-1) })
	}
	b.check.load()
	return b
}

// openOwn opens the store's own file. A file that is gone, of another size or that cannot be opened is damage: the blob
// is dropped. That this process has too many files open says nothing about it.
func (s *Store) openOwn(e *entry) (*os.File, error) {
	f, err := os.Open(s.blobPath(e.digest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, s.dropDamaged(e, "its file is missing")
	case err != nil && exhausted(err):
		return nil, err
	case err != nil:
		return nil, s.dropDamaged(e, fmt.Sprintf("its file cannot be opened: %v", err))
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != e.size {
		err = s.dropDamaged(e, fmt.Sprintf("its file has %d of %d bytes", fi.Size(), e.size))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openEntry opens the file of a blob that the index knows.
func (s *Store) openEntry(e *entry) (*os.File, error) {
	if !e.runtime {
		return s.openOwn(e)
	}
	f, _, _, err := s.openRuntime(e.digest)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && idOf(fi) != (fileID{e.size, e.modTime}) {
		err = content.ErrNotFound
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Stat describes a committed blob, the store's own or the runtime's. It fails with content.ErrNotFound, and does not
// count as a use.
func (s *Store) Stat(d digest.Digest) (Info, error) {
	e, err := s.entry(d)
	if err != nil {
		return Info{}, fmt.Errorf("stat %s: %w", d, err)
	}
	if e != nil && !e.runtime {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return e.info(s.pinned), nil
	}
	info, _, err := s.statRuntime(d)
	if err != nil {
		return Info{}, fmt.Errorf("stat %s: %w", d, err)
	}
	return info, nil
}

// ByRoot describes the committed blob whose UnixFS file has a root; of the runtime's, one whose chunk map has been
// computed. It fails with content.ErrNotFound, and does not count as a use.
func (s *Store) ByRoot(root cid.Cid) (Info, error) {
	s.mu.RLock()
	var found *entry
	for _, e := range s.blobs {
		if e.root.Equals(root) {
			found = e
			break
		}
	}
	s.mu.RUnlock()
	if found == nil {
		return Info{}, fmt.Errorf("blob of root %s: %w", root, content.ErrNotFound)
	}
	return s.Stat(found.digest)
}

// Digests lists what List describes.
func (s *Store) Digests(ctx context.Context) ([]digest.Digest, error) {
	infos, err := s.List(ctx)
	digests := make([]digest.Digest, len(infos))
	for i, info := range infos {
		digests[i] = info.Digest
	}
	return digests, err
}

// List describes every committed blob: the store's own and those that only the runtime holds, as far as that can be
// read.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return nil, fmt.Errorf("list blobs: %w", content.ErrClosed)
	}
	list := make([]Info, 0, len(s.blobs))
	own := make(map[digest.Digest]bool, len(s.blobs))
	for d, e := range s.blobs {
		if !e.runtime {
			list, own[d] = append(list, e.info(s.pinned)), true
		}
	}
	s.mu.RUnlock()
	err := s.listRuntime(ctx, func(info Info) {
		if !own[info.Digest] {
			list = append(list, info)
		}
	})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("list blobs: %w", ctx.Err())
	}
	if err != nil {
		s.log.Warn("the runtime's content store cannot be listed", "error", err)
	}
	return list, nil
}

// Usage tells what the store takes.
func (s *Store) Usage() Usage {
	free, err := s.freeDisk()
	if err != nil {
		free = -1
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var pools [poolCount]PoolUsage
	for p := range pools {
		pools[p].Bytes = s.held[p].bytes
	}
	for d := range s.pinned {
		if e := s.blobs[d]; e != nil && !e.runtime {
			pools[e.pool].PinnedBytes += e.size
		}
	}
	for _, ing := range s.ingests {
		pools[ing.origin.Pool].IngestBytes += ing.received()
	}
	for _, p := range s.partials {
		pools[p.pool].IngestBytes += p.bytes
	}
	u := Usage{Capacity: s.limits.Capacity, Models: pools[Models], FreeDisk: free}
	if u.Capacity > 0 {
		u.Models.Capacity = s.limits.ModelCapacity
		u.Capacity += s.limits.ModelCapacity
	}
	for p, pool := range pools {
		u.Blobs += s.held[p].count
		u.Bytes += pool.Bytes
		u.PinnedBytes += pool.PinnedBytes
		u.IngestBytes += pool.IngestBytes
	}
	return u
}

// ChunkMap returns the chunk map of a committed blob. The first call for a blob of the runtime reads it whole, and
// checks its digest in that pass; the answer is kept. It fails with content.ErrNotFound, and with
// content.ErrDigestMismatch for a damaged file of the runtime, which is not used any more.
func (s *Store) ChunkMap(d digest.Digest) (*content.ChunkMap, error) {
	e, err := s.entry(d)
	if err != nil {
		return nil, fmt.Errorf("chunk map of %s: %w", d, err)
	}
	if e == nil || e.runtime {
		m, err := s.mapRuntime(d)
		if err != nil {
			return nil, fmt.Errorf("chunk map of %s: %w", d, err)
		}
		return m, nil
	}
	m, err := readMeta(s.mapPath(e), d)
	if err == nil {
		return m.chunks, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if now, _ := s.entry(d); now != e { // evicted meanwhile
			return nil, fmt.Errorf("chunk map of %s: %w", d, content.ErrNotFound)
		}
	}
	repaired, err2 := s.summed(s.stopping, d, nil) // once for all who find it so
	if repaired == nil {
		return nil, fmt.Errorf("chunk map of %s: %w", d, errors.Join(err, err2))
	}
	return repaired, nil
}

// Delete removes the store's own copy of a blob, and all partial ingests of it. Removal of what is not there is no
// error; it fails with ErrPinned for a pinned blob, and with ErrBusy while an ingest is open.
func (s *Store) Delete(d digest.Digest) error {
	if _, err := s.entry(d); err != nil {
		return fmt.Errorf("delete %s: %w", d, err)
	}
	if g := s.committing(d); g != nil {
		<-g.closed
	}
	s.mu.RLock()
	pinned, busy := s.pinned[d] > 0, s.ingests[d] != nil
	s.mu.RUnlock()
	switch {
	case busy:
		return fmt.Errorf("delete %s: %w", d, ErrBusy)
	case pinned:
		return fmt.Errorf("delete %s: %w", d, ErrPinned)
	}
	err := s.dropPartials(d)
	if err == nil {
		_, err = s.remove(d, nil)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", d, err)
	}
	return nil
}

// remove takes the store's own blob out of the table and then off the disk, and returns it. It returns nil where there
// is nothing to remove: a blob that is pinned by now stays, unless damaged is the entry that is to go.
func (s *Store) remove(d digest.Digest, damaged *entry) (*entry, error) {
	e, err := s.removeFiles(d, damaged)
	s.events.deliver()
	return e, err
}

func (s *Store) removeFiles(d digest.Digest, damaged *entry) (*entry, error) {
	defer s.lockDigest(d)()
	s.mu.Lock()
	e := s.blobs[d]
	if e == nil || e.runtime || (damaged == nil && s.pinned[d] > 0) || (damaged != nil && damaged != e) {
		s.mu.Unlock()
		return nil, nil
	}
	s.unlist(e)
	s.mu.Unlock()

	// The data goes first: what is left behind by a crash is a map without a blob, which recovery removes.
	m, metaErr := readMeta(s.mapPath(e), d)
	path := s.blobPath(d)
	if err := e.checks.unlinked(path, func() error { return s.disk.remove(path) }); err != nil {
		if damaged != nil { // it must not be served; the next start finds it again
			s.tellRemoved(e)
			return e, err
		}
		s.mu.Lock()
		s.enlist(e)
		s.mu.Unlock()
		return nil, err
	}
	var chunks *content.ChunkMap
	if metaErr == nil {
		chunks = m.chunks
	}
	err := s.index.remove(d, chunks)
	if err == nil {
		err = s.disk.remove(s.mapPath(e))
	}
	if err != nil { // the blob is gone all the same, and recovery finishes this
		s.log.Warn("remove blob: leftovers stay until the next start", "digest", d, "error", err)
	}
	s.tellRemoved(e)
	return e, nil
}

func (s *Store) tellRemoved(e *entry) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.events.push(Event{Type: Removed, Info: e.info(s.pinned)})
}

func (c *catalog) enlist(e *entry) {
	if old := c.blobs[e.digest]; old != nil {
		c.unlist(old)
	}
	c.blobs[e.digest] = e
	if !e.runtime {
		c.held[e.pool].bytes += e.size
		c.held[e.pool].count++
	}
}

func (c *catalog) unlist(e *entry) {
	delete(c.blobs, e.digest)
	if !e.runtime {
		c.held[e.pool].bytes -= e.size
		c.held[e.pool].count--
	}
}

// errDamaged: the blob was found damaged by this very call, and dropped.
var errDamaged = fmt.Errorf("damaged: %w", content.ErrNotFound)

// dropDamaged removes a blob whose bytes are not its own any more, pinned or not, and returns errDamaged. It returns
// content.ErrNotFound when the blob was evicted or replaced meanwhile, which explains what was found.
func (s *Store) dropDamaged(e *entry, reason string) error {
	gone, err := s.remove(e.digest, e)
	if gone == nil && err == nil {
		return content.ErrNotFound
	}
	s.metrics.damaged.Inc()
	if err != nil {
		s.log.Error("a damaged blob is not all removed", "digest", e.digest, "reason", reason, "error", err)
	} else {
		s.log.Error("dropped a damaged blob", "digest", e.digest, "reason", reason)
	}
	return errDamaged
}

// maintainEvery is how often free disk space is looked at and last uses are written down.
const maintainEvery = 30 * time.Second

// maintain evicts when the disk fills for other reasons than an ingest, and persists last uses, until ctx ends.
func (s *Store) maintain(ctx context.Context) {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	var above error // what was logged already
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			if s.index.broken() {
				s.examine()
			}
		case <-tick.C:
			s.persistUses()
			s.examine()
		}
		err := s.trim()
		if err != nil && above == nil {
			s.log.Warn("store is above its limits", "error", err)
		}
		above = err
	}
}

// wakeMaintainer has it look at the limits soon.
func (s *Store) wakeMaintainer() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) persistUses() {
	s.mu.RLock()
	var dirty []*entry
	for _, e := range s.blobs {
		if e.dirty.CompareAndSwap(true, false) {
			dirty = append(dirty, e)
		}
	}
	s.mu.RUnlock()
	if len(dirty) == 0 {
		return
	}
	if err := s.index.refresh(dirty...); err != nil {
		s.log.Warn("last uses not written down", "error", err)
	}
}

// Close ends background work and open ingests, keeping their partial bytes, and leaves the store clean. Blobs that are
// open stay readable.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	open := make([]*Ingest, 0, len(s.ingests))
	for _, ing := range s.ingests {
		open = append(open, ing)
	}
	s.mu.Unlock()

	s.cancel()
	s.workers.Wait()
	var errs []error
	for _, ing := range open {
		errs = append(errs, ing.Close())
	}
	s.persistUses()
	s.metrics.unregister()
	synced := s.index.sync()
	errs = append(errs, synced, s.index.close(), s.state.do(s.state.db.Close))
	if synced == nil {
		errs = append(errs, s.writeSession(sessionClean))
	}
	errs = append(errs, unlockDir(s.lock))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close store %s: %w", s.opts.Path, err)
	}
	return nil
}

// session values, the content of the lock file: how the last process left the store. A boot ID stands for "was
// running".
const (
	lockName       = "lock"
	sessionClean   = "clean"
	sessionOpening = "opening"
)

func (s *Store) writeSession(v string) error {
	if err := s.disk.writeAt(s.lock, []byte(v+"\n"), 0); err != nil {
		return err
	}
	if err := s.disk.truncate(s.lock, int64(len(v)+1)); err != nil {
		return err
	}
	return s.disk.sync(s.lock)
}

func (s *Store) dir(name string) string { return filepath.Join(s.opts.Path, name) }
