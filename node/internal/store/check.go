package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// checkedFor is how long a chunk that was hashed counts as good, while nobody writes to its file and its pages stay
	// in memory.
	checkedFor = time.Hour
	// suspectFor is the same for a blob that is asked for again within askedAgain of having been given out whole: its
	// reader may have found it wrong.
	suspectFor = time.Minute
	askedAgain = 2 * time.Minute
	// unseenFor and unseenSuspectFor are the two where nobody knows whether the pages stayed in memory.
	unseenFor        = time.Minute
	unseenSuspectFor = 10 * time.Second
	// settle is longer than the steps in which the kernel counts the times of changes. A chunk of a file that was
	// changed less than that ago is hashed again, because a further change might leave the time as it is.
	settle = 100 * time.Millisecond
	// readAhead is how many chunks the kernel may bring in, unseen, after one that it reads from the disk.
	readAhead = 8
)

// stamp reports whether a file was written to. The kernel alone sets the time of change, so a tool that restores the
// modification time does not hide a write. Rot below the file system does not show here, but in resident.
type stamp struct {
	inode         uint64
	size, changed int64 // bytes; nanoseconds of Unix time
}

func stampOf(f *os.File) (stamp, error) {
	fi, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, fmt.Errorf("%s: no inode", f.Name())
	}
	return stamp{inode: st.Ino, size: fi.Size(), changed: st.Ctim.Nano()}, nil
}

// settled reports whether a later write would get another stamp.
func (st stamp) settled(now time.Time) bool {
	return time.Duration(max(now.UnixNano()-st.changed, st.changed-now.UnixNano())) > settle
}

// resident reports whether a range of a file is wholly in memory. known is false where the kernel does not tell: before
// Linux 6.5, and where a container may not ask.
func resident(f *os.File, off, n int64) (all, known bool) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, false
	}
	page := int64(os.Getpagesize())
	var stat unix.Cachestat_t
	ctlErr := conn.Control(func(fd uintptr) {
		err = unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	})
	if ctlErr != nil || err != nil {
		return false, false
	}
	return stat.Cache >= uint64((off+n+page-1)/page-off/page), true
}

// checks remembers when the chunks of a blob were last hashed.
type checks struct {
	hashing [4]sync.Mutex // by chunk, so that of many readers of a chunk one hashes it

	mu    sync.Mutex // guards what follows
	stamp stamp      // of the file that was hashed
	at    []uint32   // for each chunk: seconds since clockStart, 0 for never; nil while all are 0
	given uint32     // when the whole was last given out, in the same unit
	blind bool       // what the kernel says of the file's pages is of no use
	sums  weak.Pointer[content.ChunkMap]
}

var clockStart = time.Now()

// clock counts seconds, from 1, by a clock that nobody sets.
func clock() uint32 { return uint32(time.Since(clockStart)/time.Second) + 1 }

// within reports whether then, a value of clock or 0 for never, is less than d ago.
func within(then uint32, d time.Duration) bool {
	return then != 0 && clock()-then < uint32(d/time.Second)
}

// patience is how old a check may be for a reader who comes now.
func (c *checks) patience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if within(c.given, askedAgain) {
		return suspectFor
	}
	return checkedFor
}

func (c *checks) gaveAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given = clock()
}

// good reports whether chunk i was hashed less than age ago and is the same since, as far as f shows.
func (c *checks) good(f *os.File, st stamp, size int64, i int, age time.Duration) bool {
	c.mu.Lock()
	var at uint32
	if c.stamp == st && i < len(c.at) {
		at = c.at[i]
	}
	blind := c.blind
	c.mu.Unlock()
	if !within(at, age) {
		return false
	}
	if !blind {
		off, n := content.CutLeaves(size).Range(i)
		all, known := resident(f, off, n)
		if known && !all {
			c.forget(i, readAhead)
		}
		if known {
			return all
		}
	}
	if age < checkedFor {
		return within(at, unseenSuspectFor)
	}
	return within(at, unseenFor)
}

// forget drops the checks of chunk i and of the n after it: they may have come from the disk again.
func (c *checks) forget(i, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < len(c.at) {
		clear(c.at[i:min(i+n+1, len(c.at))])
	}
}

// note remembers that chunks first to last of a file of that stamp were hashed and found good.
func (c *checks) note(st stamp, size int64, first, last int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stamp != st || c.at == nil {
		c.stamp, c.at, c.blind = st, make([]uint32, content.CutLeaves(size).Len()), false
	}
	now := clock()
	for i := first; i <= last; i++ {
		c.at[i] = now
	}
}

// noteWhole is note for all chunks of a file whose digest was found right.
func (c *checks) noteWhole(f *os.File, size int64) {
	if st, err := stampOf(f); err == nil && st.size == size {
		c.note(st, size, 0, content.CutLeaves(size).Len()-1)
	}
}

// unlinked runs remove, which takes the file's name away, and keeps what is known of its bytes for those who have it
// open.
func (c *checks) unlinked(path string, remove func() error) error {
	f, err := os.Open(path)
	if err != nil {
		return remove()
	}
	defer func() { _ = f.Close() }() // read only
	before, err := stampOf(f)
	if err != nil {
		return remove()
	}
	if err := remove(); err != nil {
		return err
	}
	after, err := stampOf(f)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.stamp == before {
		c.stamp = after
	}
	return nil
}

// see reports whether the pages that were just read count as in memory. Where they do not, as under overlayfs, what the
// kernel says of this file means nothing.
func (c *checks) see(f *os.File, off, n int64) {
	if all, known := resident(f, off, n); known && !all {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.blind = true
	}
}

// checker lets the bytes of one open file of a blob out only as far as they were checked.
type checker struct {
	store  *Store
	digest digest.Digest
	size   int64
	entry  *entry // nil for a file of the runtime that the index does not know
	checks *checks
	age    time.Duration     // see checks.patience
	sums   *content.ChunkMap // nil while not loaded
}

// newChecker makes the checker of a blob. e is nil for a file of the runtime whose chunk map has not been computed.
func (s *Store) newChecker(d digest.Digest, size int64, e *entry) *checker {
	c := &checker{store: s, digest: d, size: size, entry: e, checks: new(checks)}
	if e != nil {
		c.checks = &e.checks
	}
	c.age = c.checks.patience()
	return c
}

// load reads the blob's sums, if they can be had without reading the blob. With them it can be read to its end even if
// it is evicted meanwhile.
func (c *checker) load() {
	if c.entry == nil || c.single() {
		return
	}
	c.checks.mu.Lock()
	c.sums = c.checks.sums.Value()
	c.checks.mu.Unlock()
	if c.sums != nil {
		return
	}
	m, err := readMeta(c.store.mapPath(c.entry), c.digest)
	if err != nil || m.chunks.Size() != c.size {
		return
	}
	c.sums = m.chunks
	c.checks.mu.Lock()
	defer c.checks.mu.Unlock()
	c.checks.sums = weak.Make(m.chunks)
}

// single reports whether the blob is one chunk that its own digest proves.
func (c *checker) single() bool {
	return c.size <= content.ChunkSize && c.digest.Algorithm() == digest.SHA256
}

// mapped reports whether chunks can be checked without reading the whole blob first.
func (c *checker) mapped() bool { return c.sums != nil || c.single() }

// sum is the hash of chunk i. Where the sums are not at hand they may have to be computed from the whole file.
func (c *checker) sum(i int) ([]byte, error) {
	if c.single() {
		id, err := content.DigestCID(c.digest)
		if err != nil {
			return nil, err
		}
		return cidSum(id), nil
	}
	m := c.sums
	if m == nil {
		var err error
		if m, err = c.store.ChunkMap(c.digest); err != nil {
			return nil, err
		}
	}
	if m.Size() != c.size {
		return nil, fmt.Errorf("chunk map of %s is of %d bytes, want %d", c.digest, m.Size(), c.size)
	}
	return cidSum(m.CID(i)), nil
}

// hash reads chunk i from f and checks it, whatever is known of it. A chunk that is wrong or cannot be read costs the
// blob: it is dropped, and the error is errDamaged.
func (c *checker) hash(f *os.File, i int) error {
	want, err := c.sum(i)
	if err != nil {
		return err
	}
	st, err := stampOf(f)
	if err != nil {
		return err
	}
	settled := st.settled(time.Now())
	off, n := content.CutLeaves(c.size).Range(i)
	h := digest.SHA256.Hash()
	c.store.metrics.checked.Add(float64(n))
	if err := hashRange(h, f, off, n); err != nil {
		return c.unreadable(f, i, err)
	}
	if !bytes.Equal(h.Sum(nil), want) {
		return c.damaged(f, fmt.Sprintf("chunk %d does not match its sum", i))
	}
	if settled {
		c.checks.note(st, c.size, i, i)
		c.checks.see(f, off, n)
	}
	return nil
}

// read reads chunk i whole from f into data, and checks it against its sum where that has to be.
func (c *checker) read(f *os.File, i int, sum, data []byte) error {
	st, err := stampOf(f)
	if err != nil {
		return err
	}
	good, settled := c.checks.good(f, st, c.size, i, c.age), st.settled(time.Now())
	off := content.CutLeaves(c.size).Start(i)
	if _, err := f.ReadAt(data, off); err != nil {
		return c.unreadable(f, i, err)
	}
	if good {
		return nil
	}
	c.store.metrics.checked.Add(float64(len(data)))
	if got := sha256.Sum256(data); !bytes.Equal(got[:], sum) {
		if want, err := c.sum(i); err != nil || !bytes.Equal(want, sum) {
			return errors.Join(content.ErrNotFound, err) // it is the index that was wrong
		}
		return c.damaged(f, fmt.Sprintf("chunk %d does not match its sum", i))
	}
	if settled {
		c.checks.note(st, c.size, i, i)
		c.checks.see(f, off, int64(len(data)))
	}
	return nil
}

// unreadable is what an error in reading chunk i means. Whoever was kept waiting for too long has closed the file by
// then, which says nothing of the blob.
func (c *checker) unreadable(f *os.File, i int, err error) error {
	if errors.Is(err, os.ErrClosed) || exhausted(err) {
		return fmt.Errorf("chunk %d of %s: %w", i, c.digest, diskError(err))
	}
	return c.damaged(f, fmt.Sprintf("chunk %d cannot be read: %v", i, err))
}

// damaged drops a blob, or stops using it where it is the runtime's.
func (c *checker) damaged(f *os.File, reason string) error {
	if c.entry != nil && !c.entry.runtime {
		return c.store.dropDamaged(c.entry, reason)
	}
	if fi, err := f.Stat(); err == nil {
		c.store.reject(c.digest, fi)
	}
	return errDamaged
}

// watch follows one reader through the file, and says how far it may go.
type watch struct {
	*checker
	file *os.File
	seen stamp // when the reader was last let go on
	// first and last are the chunks it then was given. There are none while last is less than first.
	first, last int
}

func (c *checker) watch(f *os.File) *watch { return &watch{checker: c, file: f, last: -1} }

// clear returns how many bytes from off may go out, at least one and at most want, having hashed what has to be. If
// somebody has written to the file while the reader was at those before, they are hashed first: the reader must not
// come to the end of an answer with wrong bytes in it.
func (w *watch) clear(off, want int64) (int64, error) {
	st, err := stampOf(w.file)
	if err != nil {
		return 0, err
	}
	if st != w.seen {
		for i := w.first; i <= w.last; i++ {
			if err := w.ensure(st, i); err != nil {
				return 0, err
			}
		}
	}
	cut := content.CutLeaves(w.size)
	first, end := cut.At(off), cut.At(off+want-1)
	if err := w.ensure(st, first); err != nil {
		return 0, err
	}
	last := first
	for last < end && w.checks.good(w.file, st, w.size, last+1, w.age) {
		last++
	}
	w.seen, w.first, w.last = st, first, last
	return min(want, cut.Start(last+1)-off), nil
}

// read reads what lies at an offset, having hashed the leaves in which it does where that has to be.
func (w *watch) read(data []byte, off int64) error {
	for len(data) > 0 {
		n, err := w.clear(off, int64(len(data)))
		if err != nil {
			return err
		}
		if _, err := w.file.ReadAt(data[:n], off); err != nil {
			return w.unreadable(w.file, content.CutLeaves(w.size).At(off), err)
		}
		data, off = data[n:], off+n
	}
	return nil
}

// ensure has chunk i hashed if it has to be.
func (w *watch) ensure(st stamp, i int) error {
	if w.checks.good(w.file, st, w.size, i, w.age) {
		return nil
	}
	hashing := &w.checks.hashing[i%len(w.checks.hashing)]
	hashing.Lock()
	defer hashing.Unlock()
	if w.checks.good(w.file, st, w.size, i, w.age) { // another reader was faster
		return nil
	}
	return w.hash(w.file, i)
}

// exhausted reports whether an error tells of what this process has used up, rather than of a file.
func exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// proved gives the whole of a file of the runtime while there are no sums of its chunks: all but the end goes out
// before the digest is known, and the end does not go out if it is wrong.
type proved struct {
	content io.Reader
	file    *section
	checker *checker
}

func (c *checker) prove(sec *section) *proved {
	return &proved{content: content.NewVerifier(sec, c.digest, c.size), file: sec, checker: c}
}

func (p *proved) Read(b []byte) (int, error) {
	n, err := p.content.Read(b)
	if errors.Is(err, content.ErrDigestMismatch) {
		err = p.checker.damaged(p.file.file, "its bytes do not match its digest")
	}
	return n, err
}

func (p *proved) Close() error { return p.file.Close() }
