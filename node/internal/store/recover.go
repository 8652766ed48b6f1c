package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Open opens the store at o.Path and brings back what an earlier process left, by reading directories and maps but no
// blob. It fails when another process has the store open. The caller must Close it.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", o.Path, err)
	}
	return s, nil
}

func open(ctx context.Context, o Options) (*Store, error) { return openWith(ctx, o, disk{}) }

func openWith(ctx context.Context, o Options, k disk) (_ *Store, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	s := newStore(o, k)
	for _, dir := range []string{s.blobsDir, s.ingestDir, s.runtimeMaps} {
		if err := s.disk.mkdirAll(dir); err != nil {
			return nil, err
		}
	}
	if s.lock, err = lockDir(o.Path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	orphans, err := s.recoverOnAnyDisk(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.metrics.register(); err != nil {
		return nil, err
	}
	s.stopping, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.workers.Go(func() { s.maintain(s.stopping) })
	if len(orphans) > 0 {
		s.workers.Go(func() { s.adoptAll(s.stopping, orphans) })
	}
	if o.ScrubInterval > 0 {
		s.workers.Go(func() { s.scrubAgain(s.stopping, o.ScrubInterval) })
	}
	s.workers.Go(func() { s.finishAll(s.stopping) })
	s.workers.Go(func() { s.cutLater(s.stopping) })
	s.wakeMaintainer()
	return s, nil
}

// withDefaults checks o and fills in what it leaves open.
func (o Options) withDefaults() (_ Options, err error) {
	if o.Path == "" {
		return o, errors.New("no path")
	}
	if o.Limits, err = o.Limits.withDefaults(); err != nil {
		return o, err
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.FreeSpace == nil {
		o.FreeSpace = freeSpace
	}
	o.ScrubRate = cmp.Or(o.ScrubRate, defaultScrubRate)
	return o, nil
}

// newStore is a store that knows nothing yet of what is on its disk.
func newStore(o Options, k disk) *Store {
	s := &Store{
		opts: o, log: o.Logger, disk: k, boot: bootID(), limits: o.Limits,
		wake: make(chan struct{}, 1), finished: make(chan struct{}),
		scrubbing: rate.NewLimiter(rate.Limit(o.ScrubRate), content.ChunkSize),
		catalog:   catalog{blobs: make(map[digest.Digest]*entry), ingests: make(map[digest.Digest]*Ingest)},
		partials:  make(map[partialID]partial), pins: make(map[string][]digest.Digest),
		pinned: make(pinCounts), rejected: make(map[digest.Digest]fileID),
		summing: summing{running: map[digest.Digest]*sums{}, turns: semaphore.NewWeighted(summedAtOnce)},
	}
	s.disk.health = &s.health
	s.events.listener = o.OnEvent
	s.metrics = newMetrics(o.Registerer, s)
	s.blobsDir, s.ingestDir, s.runtimeMaps = s.dir("blobs"), s.dir("ingest"), s.dir("runtime")
	return s
}

// recoverOnAnyDisk recovers as recover does, and makes room for that on a disk that is full.
func (s *Store) recoverOnAnyDisk(ctx context.Context) (orphans []orphan, err error) {
	orphans, err = s.recover(ctx)
	for want := int64(firstSacrifice); errors.Is(err, content.ErrNoSpace); want *= 2 {
		freed, removeErr := s.sacrifice(ctx, want)
		if removeErr != nil || freed == 0 {
			return nil, errors.Join(err, removeErr)
		}
		s.forget()
		orphans, err = s.recover(ctx)
	}
	return orphans, err
}

// firstSacrifice is how many bytes are given up at first on a disk that is too full to open the store on.
const firstSacrifice = 16 << 20

// sacrifice removes files of want bytes or more, where there are so many, for a store that cannot be opened on a full
// disk could not evict either: partial ingests, then the blobs that came first. What is pinned stays.
func (s *Store) sacrifice(ctx context.Context, want int64) (freed int64, err error) {
	type file struct {
		path string
		info fs.FileInfo
	}
	for _, root := range []string{s.ingestDir, s.blobsDir} {
		var files []file
		err := eachFile(ctx, root, func(path string, fi fs.FileInfo) error {
			id, ok := partialOf(path) // of a blob this is its digest
			if ok && filepath.Ext(path) != journalSuffix && s.pinned[id.digest] == 0 {
				files = append(files, file{path, fi})
			}
			return nil
		})
		if err != nil {
			return freed, err
		}
		slices.SortFunc(files, func(a, b file) int { return a.info.ModTime().Compare(b.info.ModTime()) })
		for _, f := range files {
			if freed >= want {
				return freed, nil
			}
			if err := s.disk.remove(f.path); err != nil {
				return freed, err
			}
			freed += allocated(f.info)
			s.log.Warn("the disk is too full to open the store: removed a blob or ingest", "path", f.path)
			if err := errors.Join(s.disk.remove(f.path+mapSuffix), s.disk.remove(f.path+journalSuffix)); err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

// forget undoes what recover has done in memory.
func (s *Store) forget() {
	s.closeDatabases()
	for _, e := range s.blobs {
		s.unlist(e)
	}
	clear(s.partials)
	clear(s.pins)
	clear(s.pinned)
	s.arrived = nil
}

func (s *Store) closeDatabases() {
	if s.index != nil {
		_ = s.index.close()
		s.index = nil
	}
	if s.state != nil {
		_ = s.state.db.Close()
		s.state = nil
	}
}

// abandon lets go of everything as a killed process would.
func (s *Store) abandon() {
	s.closeDatabases()
	s.metrics.unregister()
	_ = unlockDir(s.lock)
}

// recover makes the table of blobs, the index and the partial ingests agree with the files, and returns the blobs whose
// map is lost, which must be read to make it again.
func (s *Store) recover(ctx context.Context) (orphans []orphan, err error) {
	if err := s.recoverState(); err != nil {
		return nil, err
	}
	if err := s.recoverIndex(); err != nil {
		return nil, err
	}
	known := make(map[digest.Digest]record)
	err = s.index.records(func(d digest.Digest, r record) error {
		known[d] = r
		return nil
	})
	if err != nil {
		return nil, err
	}
	r := recovery{s: s, known: known}
	if err := r.blobs(ctx); err != nil {
		return nil, err
	}
	if err := r.runtime(ctx); err != nil {
		return nil, err
	}
	if err := r.flush(0); err != nil {
		return nil, err
	}
	for d := range known { // those left have no file
		if err := s.index.remove(d, nil); err != nil {
			s.log.Warn("index record of a blob that is gone", "digest", d, "error", err)
		}
	}
	if err := s.recoverIngests(ctx); err != nil {
		return nil, err
	}
	return r.orphans, s.writeSession(s.boot)
}

// recoverState opens the pins and memories. Damage costs those, never the store: who pinned will pin again. All of it
// is read, for damage that showed later would end the process, and every one after it.
func (s *Store) recoverState() (err error) {
	path := s.dir("state.db")
	err = guard(func() error {
		if s.state, err = openState(path); err != nil {
			return err
		}
		if err := walk(s.state.db); err != nil {
			return err
		}
		return s.loadPins()
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%w: another process has the file open", err)
	case errors.Is(diskError(err), content.ErrNoSpace), errors.Is(err, fs.ErrPermission):
		return diskError(err)
	}
	s.log.Error("pins and remembered state are damaged and start anew", "kept", path+".damaged", "error", err)
	if err := s.disk.rename(path, path+".damaged"); err != nil {
		return err
	}
	s.state = nil // not closed: that may touch the damaged pages
	clear(s.pins)
	clear(s.pinned)
	s.state, err = openState(path)
	return err
}

// recoverIndex opens the index, or a new one if the old cannot be trusted: it is never synced, so it is good after a
// clean close, and after a kill within the same boot of the machine if it reads well, and otherwise not. While it is
// being opened the session file says so: damage that ends the process would end it at every start.
func (s *Store) recoverIndex() error {
	b := make([]byte, 64)
	n, _ := s.lock.ReadAt(b, 0)
	session := string(bytes.TrimRight(b[:n], "\n"))
	if err := s.writeSession(sessionOpening); err != nil {
		return err
	}
	path := s.dir("index.db")
	if session == sessionClean || (session == s.boot && s.boot != "") {
		err := s.tryIndex(path, session != sessionClean)
		if err == nil {
			return nil
		}
		s.log.Warn("index is made again from the files", "error", err)
	}
	if err := s.disk.remove(path); err != nil {
		return err
	}
	return s.tryIndex(path, false)
}

func (s *Store) tryIndex(path string, check bool) error {
	return guard(func() error {
		x, err := openIndex(path)
		if err != nil {
			return err
		}
		if check {
			if err := walk(x.in.Load().db); err != nil {
				return errors.Join(err, x.close())
			}
		}
		s.index = x
		return nil
	})
}

// reindex makes an index that was damaged while the store ran again from the maps. Until it is done some blocks are not
// found.
func (s *Store) reindex() error {
	s.log.Error("the index is damaged and made again from the files")
	path := s.dir("index.db")
	if err := s.disk.remove(path); err != nil {
		return err
	}
	fresh, err := openIndex(path)
	if err != nil {
		return err
	}
	s.index.replace(fresh)
	s.mu.RLock()
	entries := slices.Collect(maps.Values(s.blobs))
	s.mu.RUnlock()
	for _, e := range entries {
		if s.stopping.Err() != nil {
			return s.writeSession(sessionOpening) // the next start makes it again
		}
		m, err := readMeta(s.mapPath(e), e.digest)
		if err != nil {
			continue // the blob is found damaged, or has gone
		}
		if err := s.index.put(indexed{entry: e, chunks: m.chunks}); err != nil {
			return err
		}
	}
	return nil
}

// recovery compares files with index records.
type recovery struct {
	s       *Store
	known   map[digest.Digest]record // records not yet met as a file
	pending []indexed                // to be put into the index
	weight  int                      // chunks in pending
	orphans []orphan
}

// orphan is a blob whose map is lost.
type orphan struct {
	digest    digest.Digest
	mediaType string // as the index remembers it
	pool      Pool   // likewise
}

// batchChunks is the number of chunks that are indexed in one transaction while the index is made again.
const batchChunks = 1 << 16

func (r *recovery) add(e *entry, m *content.ChunkMap) error {
	r.pending = append(r.pending, indexed{entry: e, chunks: m})
	r.weight += m.Len()
	return r.flush(batchChunks)
}

// flush indexes what is pending if it is more than limit chunks.
func (r *recovery) flush(limit int) error {
	if r.weight <= limit {
		return nil
	}
	if err := r.s.index.put(r.pending...); err != nil {
		return err
	}
	for _, b := range r.pending {
		r.s.enlist(b.entry)
	}
	r.pending, r.weight = nil, 0
	return nil
}

// blobs goes through the store's own blobs.
func (r *recovery) blobs(ctx context.Context) error {
	return eachFile(ctx, r.s.blobsDir, func(path string, fi fs.FileInfo) error {
		name := filepath.Base(path)
		d, ok := fileDigest(path)
		switch {
		case strings.HasSuffix(name, tempSuffix):
			return r.s.disk.remove(path)
		case !ok:
			r.s.log.Warn("unknown file in the store is left alone", "path", path)
			return nil
		case strings.HasSuffix(name, mapSuffix):
			return r.strayMap(path, d)
		}
		return r.blob(d, fi)
	})
}

// strayMap removes a map without a blob, what a crash leaves of a commit that had not ended or of a removal.
func (r *recovery) strayMap(path string, d digest.Digest) error {
	if _, err := os.Stat(r.s.blobPath(d)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if m, err := readMeta(path, d); err == nil {
		if err := r.s.index.remove(d, m.chunks); err != nil {
			return err
		}
		delete(r.known, d)
	}
	return r.s.disk.remove(path)
}

func (r *recovery) blob(d digest.Digest, fi fs.FileInfo) error {
	mapPath := r.s.blobPath(d) + mapSuffix
	rec, ok := r.known[d]
	if _, err := os.Stat(mapPath); err == nil && ok && !rec.Runtime && rec.Size == fi.Size() {
		return r.reinstate(d, rec)
	}
	m, err := readMeta(mapPath, d)
	if err != nil || m.chunks.Size() != fi.Size() {
		r.orphans = append(r.orphans, orphan{digest: d, mediaType: rec.MediaType, pool: rec.Pool.known()})
		return nil
	}
	delete(r.known, d)
	e := newEntry(d, fi.Size(), m.MediaType, time.Unix(0, m.Committed))
	e.pool = m.Pool.known()
	return r.add(e, m.chunks)
}

// reinstate enlists a blob as the index has it.
func (r *recovery) reinstate(d digest.Digest, rec record) error {
	e, err := entryOf(d, rec)
	if err != nil {
		return err
	}
	delete(r.known, d)
	r.s.enlist(e)
	return nil
}

func entryOf(d digest.Digest, r record) (*entry, error) {
	e := newEntry(d, r.Size, r.MediaType, time.Unix(0, r.Committed))
	root, err := cid.Cast(r.Root)
	if err != nil {
		return nil, fmt.Errorf("index record of %s: root: %w", d, err)
	}
	e.root, e.runtime, e.modTime, e.pool = root, r.Runtime, r.ModTime, r.Pool.known()
	e.lastUsed.Store(r.LastUsed)
	e.hits.Store(r.Hits)
	return e, nil
}

// runtime goes through the kept maps of the runtime's blobs, and drops those whose blob has gone or changed.
func (r *recovery) runtime(ctx context.Context) error {
	return eachFile(ctx, r.s.runtimeMaps, func(path string, _ fs.FileInfo) error {
		d, ok := fileDigest(path)
		if !ok || !strings.HasSuffix(path, mapSuffix) || r.s.blobs[d] != nil {
			return r.s.disk.remove(path)
		}
		fi, err := r.s.runtimeFile(d)
		if err != nil && !errors.Is(err, content.ErrNotFound) {
			r.s.log.Warn("the runtime's content store cannot be read", "digest", d, "error", err)
			return nil
		}
		rec, ok := r.known[d]
		if err == nil && ok && rec.Runtime && idOf(fi) == (fileID{rec.Size, rec.ModTime}) {
			return r.reinstate(d, rec)
		}
		m, metaErr := readMeta(path, d)
		switch {
		case metaErr != nil:
			return r.s.disk.remove(path)
		case err == nil && idOf(fi) == (fileID{m.chunks.Size(), m.ModTime}):
			delete(r.known, d)
			e := newEntry(d, fi.Size(), m.MediaType, time.Unix(0, m.Committed))
			e.runtime, e.modTime = true, m.ModTime
			return r.add(e, m.chunks)
		}
		if err := r.s.index.remove(d, m.chunks); err != nil {
			return err
		}
		delete(r.known, d)
		return r.s.disk.remove(path)
	})
}

// recoverIngests lists the partial ingests, and removes what cannot be resumed.
func (s *Store) recoverIngests(ctx context.Context) error {
	return eachFile(ctx, s.ingestDir, func(path string, _ fs.FileInfo) error {
		id, ok := partialOf(path)
		if !ok {
			return s.disk.remove(path)
		}
		if s.partials[id].size > 0 { // met by its other file
			return nil
		}
		path = strings.TrimSuffix(path, journalSuffix)
		p, complete, err := loadPartial(path, id.source)
		if e := s.blobs[id.digest]; err != nil || e != nil && !e.runtime {
			return errors.Join(s.disk.remove(path), s.disk.remove(path+journalSuffix))
		}
		s.partials[id] = p
		if complete {
			s.arrived = append(s.arrived, id)
		}
		return nil
	})
}

// fileDigest reads the digest off a file's path, whose folder names the algorithm: …/sha256/<hex> or
// …/sha256/<2>/<hex>.
func fileDigest(path string) (digest.Digest, bool) {
	dir, name := filepath.Split(path)
	name = strings.TrimSuffix(name, mapSuffix)
	dir = filepath.Clean(dir)
	if base := filepath.Base(dir); len(base) == 2 && strings.HasPrefix(name, base) {
		dir = filepath.Dir(dir)
	}
	d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(dir)), name)
	_, err := content.DigestCID(d)
	return d, err == nil
}

// eachFile calls f with every regular file below root. A file that vanishes meanwhile is passed over.
func eachFile(ctx context.Context, root string, f func(path string, fi fs.FileInfo) error) error {
	return filepath.WalkDir(root, func(path string, de fs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !de.Type().IsRegular() {
			return nil
		}
		fi, err := de.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(path, fi)
	})
}

// adoptAll reads blobs whose map is lost, and commits those whose digest matches.
func (s *Store) adoptAll(ctx context.Context, orphans []orphan) {
	for _, o := range orphans {
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("map of a blob is lost; reading the blob", "digest", o.digest)
		if err := s.adopt(ctx, o); err != nil && ctx.Err() == nil {
			s.log.Error("blob without a map is not kept", "digest", o.digest, "error", err)
		}
	}
}

func (s *Store) adopt(ctx context.Context, o orphan) error {
	d := o.digest
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	chunks, hashErr := s.hashFile(ctx, f, fi.Size(), d)
	if hashErr != nil && !errors.Is(hashErr, content.ErrDigestMismatch) {
		return hashErr
	}
	err = s.publishOrphan(o, f, chunks)
	s.events.deliver()
	s.wakeMaintainer()
	return errors.Join(hashErr, err)
}

// publishOrphan records the blob, or removes the file where chunks is nil, unless an ingest was faster.
func (s *Store) publishOrphan(o orphan, f *os.File, chunks *content.ChunkMap) error {
	d := o.digest
	defer s.lockDigest(d)()
	path := s.blobPath(d)
	if e, err := s.entry(d); err != nil || (e != nil && !e.runtime) {
		return err
	}
	if chunks == nil {
		s.metrics.damaged.Inc()
		return errors.Join(s.disk.remove(path), s.disk.remove(path+mapSuffix), s.index.remove(d, nil))
	}
	e := newEntry(d, chunks.Size(), o.mediaType, time.Now())
	e.pool = o.pool
	e.checks.noteWhole(f, e.size)
	if err := s.writeMap(e, chunks); err != nil {
		return err
	}
	s.dropRuntimeMap(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enlist(e)
	s.events.push(Event{Type: Committed, Info: e.info(s.pinned)})
	return nil
}

// writeMap makes e's map file and index records. The caller holds the digest's lock.
func (s *Store) writeMap(e *entry, chunks *content.ChunkMap) error {
	path := s.mapPath(e)
	if err := metaOf(e, chunks).write(s.disk, path); err != nil {
		return err
	}
	if err := s.disk.syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return s.index.put(indexed{entry: e, chunks: chunks})
}

// repairMap makes the map of a blob again, where it is damaged or has no pieces, or drops the blob if its bytes are
// damaged too. Where only the map's file cannot be written, it gives the map with the error: the index is enough to
// serve by. The sums are kept then, so that the blob is not read for the next attempt.
func (s *Store) repairMap(ctx context.Context, e *entry) (*content.ChunkMap, error) {
	chunks := e.unsaved.Load()
	if chunks == nil {
		var err error
		if chunks, err = s.sumOwn(ctx, e); err != nil {
			return nil, err
		}
	}
	defer s.lockDigest(e.digest)()
	now, err := s.entry(e.digest)
	if err != nil {
		return nil, err
	}
	if now != e {
		return chunks, nil
	}
	if err = s.writeMap(e, chunks); err == nil {
		e.unsaved.Store(nil)
		return chunks, nil
	}
	if e.unsaved.Swap(chunks) == nil {
		s.log.Warn("the map of a blob cannot be written, and is kept in memory", "digest", e.digest, "error", err)
	}
	if err2 := s.index.put(indexed{entry: e, chunks: chunks}); err2 != nil {
		return nil, errors.Join(err, err2)
	}
	return chunks, err
}

// sumOwn makes the map of a blob from its bytes, and drops the blob if they are damaged.
func (s *Store) sumOwn(ctx context.Context, e *entry) (*content.ChunkMap, error) {
	f, err := s.openOwn(e)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	chunks, err := s.hashFile(ctx, f, e.size, e.digest)
	if errors.Is(err, content.ErrDigestMismatch) {
		_ = s.dropDamaged(e, "its map is damaged or lacks the pieces, and its bytes are damaged")
	}
	return chunks, err
}
