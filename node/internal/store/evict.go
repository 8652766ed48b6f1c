package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Limits say how much the store may hold and what goes when it is full.
type Limits struct {
	// Capacity bounds the bytes of committed and arriving blobs. 0: only the disk bounds them.
	Capacity int64
	// ModelCapacity bounds those of models, which then count no more in Capacity. 0: they do.
	ModelCapacity int64
	// High and Low are shares of either capacity, 0 < Low <= High <= 1. Above High the store evicts, down to Low. 0
	// stands for DefaultHigh and DefaultLow.
	High, Low float64
	// MinFree is the free disk space in bytes below which the store evicts and takes nothing in.
	MinFree int64
	// Eviction names the algorithm that orders victims, without regard to case: LRU, or SLRU, which resists scans.
	// Empty: DefaultEviction.
	Eviction string
}

// The defaults of Limits, which are the agent's too.
const (
	DefaultHigh     = 0.95
	DefaultLow      = 0.85
	DefaultEviction = "LRU"
)

// withDefaults checks l and fills in what it leaves open.
func (l Limits) withDefaults() (Limits, error) {
	l.High = cmp.Or(l.High, DefaultHigh)
	l.Low = cmp.Or(l.Low, min(DefaultLow, l.High))
	l.Eviction = cmp.Or(l.Eviction, DefaultEviction)
	l.Eviction = strings.ToUpper(l.Eviction)
	switch {
	case l.Capacity < 0 || l.ModelCapacity < 0 || l.MinFree < 0:
		return l, fmt.Errorf("limits: capacities of %d and %d and free disk of %d bytes must not be negative",
			l.Capacity, l.ModelCapacity, l.MinFree)
	case !(0 < l.Low && l.Low <= l.High && l.High <= 1): // written so that a NaN fails
		return l, fmt.Errorf("limits: watermarks %g and %g are not 0 < low <= high <= 1", l.Low, l.High)
	case policies[l.Eviction] == nil:
		return l, fmt.Errorf("limits: no eviction policy %q", l.Eviction)
	}
	return l, nil
}

// candidate is what a policy knows of a blob that may be evicted.
type candidate struct {
	digest   digest.Digest
	size     int64
	lastUsed int64  // nanoseconds of Unix time; of the commit where there was no use
	hits     uint32 // uses since the commit, those less than sameUse apart counted once
	open     bool   // somebody reads it
}

// policy orders blobs in place, the one to evict first at the front. Capacity is the store's, in bytes, 0 for none.
type policy func(blobs []candidate, capacity int64)

// policies holds the eviction policies by name.
var policies = map[string]policy{"LRU": lru, "SLRU": slru}

// lru evicts the least recently used blob first.
func lru(blobs []candidate, _ int64) {
	slices.SortFunc(blobs, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.lastUsed, b.lastUsed), cmp.Compare(a.digest, b.digest))
	})
}

// protectedShare is the share of the capacity that slru protects; the segmented LRU of Karedla, Love and Wherry,
// Caching Strategies to Improve Disk System Performance (1994), does best between 0.6 and 0.8.
const protectedShare = 0.8

// slru, the segmented LRU, resists scans: blobs that were not used again since they came go first, in LRU order, so
// that a rollout of images that are pulled once leaves alone what is pulled every day. Of those that were used again,
// the most recently used up to four fifths of the capacity are protected; the others have sunk back to the first kind.
func slru(blobs []candidate, capacity int64) {
	lru(blobs, capacity)
	protected := make(map[digest.Digest]bool)
	left := int64(float64(capacity) * protectedShare)
	for _, b := range slices.Backward(blobs) {
		if b.hits == 0 {
			continue
		}
		if left -= b.size; left < 0 && capacity > 0 {
			break
		}
		protected[b.digest] = true
	}
	slices.SortStableFunc(blobs, func(a, b candidate) int {
		switch pa, pb := protected[a.digest], protected[b.digest]; {
		case pa == pb:
			return 0
		case pb:
			return -1
		}
		return 1
	})
}

// SetLimits changes the limits. What is above them is evicted before it returns, as far as pins allow.
func (s *Store) SetLimits(l Limits) error {
	l, err := l.withDefaults()
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("set limits: %w", content.ErrClosed)
	}
	s.limits = l
	s.mu.Unlock()
	if err := s.trim(); err != nil {
		s.log.Warn("store is above its new limits", "error", err)
	}
	return nil
}

// partial is an ingest that nobody has open.
type partial struct {
	size  int64 // of the blob
	cut   content.Cut
	bytes int64     // on disk
	used  time.Time // when it was closed
	pool  Pool
	// finish is set while a complete one, which the last process left, is being hashed. Calling it ends that.
	finish context.CancelFunc
	// doubtful is what is there of one that ended with Doubt, which has no journal. nil: it may be resumed.
	doubtful *doubtful
}

// stale is the age from which a partial ingest is of less worth than any blob: whoever pulled it has given up.
const stale = time.Hour

// admit claims the digest of an ingest, if its bytes could be made room for. Nothing is evicted yet: a size is
// somebody's word until the digest has been checked, and room is made for the bytes that arrive; see reserve. What the
// windows of the pool may still take is left to them: they are open for who reads, and each is of a bounded size.
func (s *Store) admit(ing *Ingest) error {
	s.room.Lock()
	defer s.room.Unlock()
	s.mu.RLock()
	err, need := s.claimable(ing.digest), ing.size-s.partials[ing.id()].bytes
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	_, coming, _ := s.windowsLeft(ing.origin.Pool)
	if _, _, err := s.evictable(ing.origin.Pool, max(need, 0)+coming, ing.id()); err != nil {
		s.metrics.refused(ing.origin.Pool)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.claimable(ing.digest); err != nil {
		return err
	}
	ing.earlier = s.partials[ing.id()]
	if ing.earlier.finish != nil {
		ing.earlier.finish()
		ing.earlier.finish = nil
	}
	delete(s.partials, ing.id())
	s.ingests[ing.digest] = ing
	return nil
}

// reserve makes room in a pool for n bytes that have arrived, and holds it until release. It fails with
// content.ErrNoSpace, having evicted nothing, when no eviction would make them fit. Above the high watermark the
// maintainer evicts on meanwhile. The caller has the events delivered once it holds no lock.
func (s *Store) reserve(pool Pool, n int64) (release func(), err error) {
	s.room.Lock()
	defer s.room.Unlock()
	must, victims, err := s.evictable(pool, n, partialID{})
	if err == nil {
		err = s.evictAll(victims, must, must, nil)
	}
	if err != nil {
		return nil, err
	}
	s.reserved[pool] += n
	return func() {
		s.room.Lock()
		defer s.room.Unlock()
		s.reserved[pool] -= n
	}, nil
}

// claimable is nil for a blob that may begin to arrive.
func (c *catalog) claimable(d digest.Digest) error {
	switch e := c.blobs[d]; {
	case c.closed:
		return content.ErrClosed
	case e != nil && !e.runtime:
		return ErrExists
	case c.ingests[d] != nil:
		return ErrBusy
	}
	return nil
}

// trim evicts what is above the limits, as far as it may be. It fails with content.ErrNoSpace when that is not enough.
// An admission waits for the eviction of one blob at most. Where others fill the disk the pool that has more gives
// first.
func (s *Store) trim() error {
	s.trimming.Lock()
	defer s.trimming.Unlock()
	s.mu.RLock()
	pools := []Pool{Images}
	if !s.limits.share(Images, Models) {
		pools = append(pools, Models)
	}
	slices.SortStableFunc(pools, func(a, b Pool) int { return cmp.Compare(s.held[b].bytes, s.held[a].bytes) })
	s.mu.RUnlock()
	var errs []error
	for _, pool := range pools {
		short := func() (must, want int64) { return s.shortfall(pool, 0, 0) }
		if _, want := short(); want <= 0 {
			continue
		}
		s.room.Lock() // or an admission may evict what is short between the two
		must, want := short()
		victims := s.victims(pool, partialID{})
		s.room.Unlock()
		for i, v := range victims {
			victims[i].evict = func() (int64, error) {
				s.room.Lock()
				defer s.events.deliver()
				defer s.room.Unlock()
				return v.evict()
			}
		}
		errs = append(errs, s.evictAll(victims, must, want, short))
	}
	for _, pool := range pools {
		if must, _ := s.shortfall(pool, 0, 0); must > 0 {
			return errors.Join(errs...)
		}
	}
	return nil // what one pool could not give another gave
}

// evictable tells how many bytes of a pool must go so that extra more fit into it, and what may go: all but the partial
// ingest of keep. It fails with content.ErrNoSpace when that is not enough. The caller holds s.room.
func (s *Store) evictable(pool Pool, extra int64, keep partialID) (must int64, victims []victim, err error) {
	var others int64
	s.mu.RLock()
	l := s.limits
	s.mu.RUnlock()
	for p, n := range s.reserved {
		if l.share(Pool(p), pool) {
			extra += n
		} else {
			others += n
		}
	}
	must, want := s.shortfall(pool, extra, others)
	if want > 0 {
		s.wakeMaintainer()
	}
	if must <= 0 {
		return 0, nil, nil
	}
	victims = s.victims(pool, keep)
	var bytes int64
	for _, v := range victims {
		bytes += v.bytes
	}
	if bytes < must {
		return 0, nil, fmt.Errorf("%d bytes too many, of which %d can be evicted: %w", must, bytes, content.ErrNoSpace)
	}
	return must, victims, nil
}

// evictAll evicts in order until want bytes are free. It fails when not even must bytes could be had. again tells anew
// how many must go and should, where others evict meanwhile. nil: nobody does.
func (s *Store) evictAll(victims []victim, must, want int64, again func() (must, want int64)) error {
	for _, v := range victims {
		if want <= 0 {
			break
		}
		freed, err := v.evict()
		if err != nil {
			s.log.Warn("eviction failed", "digest", v.digest, "error", err)
			if errors.Is(err, syscall.EROFS) {
				break // nor would any other go
			}
			continue
		}
		if freed == 0 && again != nil { // somebody else has evicted it, or it is needed now
			must, want = again()
			continue
		}
		want -= freed
		must -= freed
	}
	if must > 0 { // too much is pinned, was pinned or resumed meanwhile, or the disk refused
		return fmt.Errorf("%d bytes too many after eviction: %w", must, content.ErrNoSpace)
	}
	return nil
}

// shortfall tells how many bytes of a pool must go at least so that extra more fit into it and others elsewhere on the
// disk, and how many should go when the pool is above its high watermark. Neither is above 0 when nothing need be done.
func (s *Store) shortfall(pool Pool, extra, others int64) (must, want int64) {
	free, err := s.freeDisk()
	if err != nil {
		s.log.Warn("free disk space is not known", "error", err)
		free = math.MaxInt64
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	l := s.limits
	var used int64
	for p, h := range s.held {
		if l.share(Pool(p), pool) {
			used += h.bytes
		}
	}
	for _, ing := range s.ingests {
		if l.share(ing.origin.Pool, pool) {
			used += ing.taken()
		}
	}
	for _, p := range s.partials {
		if l.share(p.pool, pool) {
			used += p.bytes
		}
	}
	if capacity := l.capacity(pool); capacity > 0 {
		must = used + extra - capacity
		if used+extra > share(capacity, l.High) {
			want = used + extra - share(capacity, l.Low)
		}
	}
	disk := l.MinFree + extra + others - free
	return max(must, disk), max(want, disk)
}

func share(capacity int64, part float64) int64 { return int64(float64(capacity) * part) }

// victim is one thing that can be evicted.
type victim struct {
	digest digest.Digest
	bytes  int64
	evict  func() (freed int64, err error)
}

// victims lists all that may go of a pool, the first to go first. Within each kind of blob the policy decides.
//
//  1. stale partial ingests
//  2. blobs that the runtime holds too
//  3. blobs that other nodes hold
//  4. the other blobs
//  5. what was used a moment ago, because a pull may be at it, and what somebody reads: its bytes would come back only
//     when that has ended, and others would be evicted for them meanwhile
//  6. the partial ingests that may yet be resumed
func (s *Store) victims(pool Pool, keep partialID) []victim {
	s.mu.RLock()
	l := s.limits
	order, capacity := policies[l.Eviction], l.capacity(pool)
	var blobs []candidate
	now := time.Now()
	for d, e := range s.blobs {
		if !e.runtime && l.share(e.pool, pool) && s.pinned[d] == 0 {
			blobs = append(blobs, candidate{digest: d, size: e.size, lastUsed: e.used(now), hits: e.hits.Load(),
				open: e.readers.Load() > 0})
		}
	}
	var old, young []victim
	for id, p := range s.partials {
		v := victim{digest: id.digest, bytes: p.bytes, evict: func() (int64, error) { return s.evictPartial(id) }}
		switch {
		case id == keep || !l.share(p.pool, pool):
		case time.Since(p.used) > stale:
			old = append(old, v)
		default:
			young = append(young, v)
		}
	}
	s.mu.RUnlock()

	order(blobs, capacity)
	worth, theirs := make(map[digest.Digest]int, len(blobs)), s.heldByRuntime(blobs)
	for _, b := range blobs {
		worth[b.digest] = s.worth(b, theirs[b.digest], now)
	}
	slices.SortStableFunc(blobs, func(a, b candidate) int { return cmp.Compare(worth[a.digest], worth[b.digest]) })
	all := old
	for _, b := range blobs {
		all = append(all, victim{digest: b.digest, bytes: b.size, evict: func() (int64, error) {
			return s.evict(b.digest)
		}})
	}
	return append(all, young...)
}

// heldByRuntime is which blobs the runtime holds too, as far as its disk tells within readPatience.
func (s *Store) heldByRuntime(blobs []candidate) map[digest.Digest]bool {
	held := map[digest.Digest]bool{}
	if s.opts.RuntimePath == "" {
		return held
	}
	for end := time.Now().Add(readPatience); len(blobs) > 0 && time.Now().Before(end); {
		some := blobs[:min(len(blobs), statsAtOnce)]
		blobs = blobs[len(some):]
		theirs, err := ask(s, s.opts.RuntimePath, func() (theirs []digest.Digest, _ error) {
			for _, b := range some {
				if fi, err := os.Stat(s.runtimePath(b.digest)); err == nil && s.usable(b.digest, fi) {
					theirs = append(theirs, b.digest)
				}
			}
			return theirs, nil
		})
		if err != nil { // the disk hangs
			break
		}
		for _, d := range theirs {
			held[d] = true
		}
	}
	return held
}

// statsAtOnce is how many files are looked up in one read: few enough that a slow disk is not taken for one that hangs.
const statsAtOnce = 64

// worth ranks a blob by how easily it would be had again, and whether a pull may be at it. theirs: the runtime holds it
// too.
func (s *Store) worth(b candidate, theirs bool, now time.Time) int {
	switch {
	case b.open:
		return 3
	case theirs:
		return 0
	case now.UnixNano()-b.lastUsed < int64(sameUse):
		return 3
	case s.opts.Holders != nil && s.opts.Holders(b.digest) > 0:
		return 1
	}
	return 2
}

// evict removes a blob and leaves the event to be delivered: a listener that is slow must not keep s.room.
func (s *Store) evict(d digest.Digest) (int64, error) {
	e, err := s.removeFiles(d, nil)
	if e == nil {
		return 0, err
	}
	s.metrics.evicted.Add(float64(e.size))
	s.log.Info("evicted a blob", "digest", d, "bytes", e.size)
	return e.size, nil
}

// evictPartial drops a partial ingest. The caller holds s.room, so that nobody resumes it meanwhile.
func (s *Store) evictPartial(id partialID) (int64, error) {
	s.mu.Lock()
	p, ok := s.partials[id]
	delete(s.partials, id)
	s.mu.Unlock()
	if !ok {
		return 0, nil
	}
	path := id.path(s.ingestDir)
	if err := errors.Join(s.disk.remove(path+journalSuffix), s.disk.remove(path)); err != nil {
		s.mu.Lock()
		s.partials[id] = p // what is left of it still takes space
		s.mu.Unlock()
		return 0, err
	}
	return p.bytes, nil
}

// dropPartial drops a partial ingest, if it is there.
func (s *Store) dropPartial(id partialID) error {
	s.room.Lock()
	defer s.room.Unlock()
	_, err := s.evictPartial(id)
	return err
}

// dropPartials drops the partial ingests of d, of whatever source.
func (s *Store) dropPartials(d digest.Digest) (err error) {
	s.mu.RLock()
	all := slices.Collect(maps.Keys(s.partials))
	s.mu.RUnlock()
	for _, id := range all {
		if id.digest == d {
			err = errors.Join(err, s.dropPartial(id))
		}
	}
	return err
}

// loadPartial describes the partial ingest at path, and reports whether each of its chunks is present. It fails when
// there is no journal to go with the data, or one of another source.
func loadPartial(path string, of Source) (p partial, complete bool, err error) {
	data, err := os.Stat(path)
	if err != nil {
		return partial{}, false, err
	}
	f, err := os.Open(path + journalSuffix)
	if err != nil {
		return partial{}, false, err
	}
	defer func() { _ = f.Close() }() // read only
	cut, from, complete, err := readJournal(f)
	if err != nil {
		return partial{}, false, err
	}
	if from.Source != of { // of a release that told them apart by the journal alone
		return partial{}, false, fs.ErrNotExist
	}
	if n := allocated(data); n > 0 {
		size := cut.Size()
		used := data.ModTime()
		if now := time.Now(); used.After(now) { // the clock has been set back since
			used = now
		}
		p = partial{size: size, cut: cut, bytes: min(n, size), used: used, pool: from.Pool}
		return p, complete && data.Size() == size, nil
	}
	return partial{}, false, fs.ErrNotExist
}
