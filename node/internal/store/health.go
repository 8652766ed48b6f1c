package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// hangsAfter is how long an operation on the disk may take before the disk counts as hanging, and readHangsAfter is
// that of a read, for which a caller waits. The guard unplugs the node with the first answer that says so.
const hangsAfter, readHangsAfter = 10 * time.Second, 4 * time.Second

// health is what is wrong with the disk, as the operations on it show.
type health struct {
	mu      sync.Mutex
	failure error // of the last operation that failed, until the disk was found to work again
	running map[*operation]struct{}
}

type operation struct {
	name  string
	start time.Time
	read  bool // for a caller
}

func (h *health) begin(op, path string) *operation {
	return h.start(&operation{name: op + " " + path, start: time.Now()})
}

func (h *health) start(o *operation) *operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running == nil {
		h.running = make(map[*operation]struct{})
	}
	h.running[o] = struct{}{}
	return o
}

func (h *health) end(o *operation, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.running, o)
	if errors.Is(err, content.ErrNoSpace) || errors.Is(err, content.ErrStorage) {
		h.failure = fmt.Errorf("%s: %w", o.name, err)
	}
}

// fail and clear set what is wrong by another's word.
func (h *health) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failure = err
}

func (h *health) clear() { h.fail(nil) }

// err is what is wrong now.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.hangs(false); err != nil {
		return err
	}
	return h.failure
}

// hung is err as far as waiting for the disk is vain.
func (h *health) hung() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hangs(false)
}

// blind is hung of reads alone. Where writes hang, what is in memory can be read as a rule.
func (h *health) blind() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hangs(true)
}

func (h *health) hangs(reads bool) error {
	for o := range h.running {
		if reads && !o.read {
			continue
		}
		patience := hangsAfter
		if o.read {
			patience = readHangsAfter
		}
		if took := time.Since(o.start); took > patience {
			return fmt.Errorf("the disk hangs: %s has taken %s: %w", o.name, took.Round(time.Second),
				content.ErrStorage)
		}
	}
	return nil
}

// readPatience is how long a caller is kept waiting by one read. What takes longer he had better have from elsewhere.
const readPatience = 3 * time.Second

// within runs a read of the disk, and goes away when it takes longer than readPatience, or at once while other reads
// hang. The read may then still be running.
func (s *Store) within(path string, read func() error) error {
	if err := s.health.blind(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.watched("read", path, true, read) }()
	timer := time.NewTimer(readPatience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("read %s: no answer from the disk within %s: %w", path, readPatience, content.ErrStorage)
	}
}

// ask is within for a read that answers something.
func ask[T any](s *Store, path string, read func() (T, error)) (answer T, err error) {
	said := make(chan T, 1)
	err = s.within(path, func() error {
		v, err := read()
		said <- v
		return err
	})
	if err == nil {
		answer = <-said
	}
	return answer, err
}

// watched runs what reads the disk, so that it is known if it hangs. awaited: a caller waits for it.
func (s *Store) watched(op, path string, awaited bool, read func() error) error {
	running := s.health.start(&operation{name: op + " " + path, start: time.Now(), read: awaited})
	defer s.health.end(running, nil)
	if s.disk.beforeRead != nil {
		s.disk.beforeRead(path)
	}
	return read()
}

// Hangs is nil unless a read of the disk has not come back for so long that the disk cannot be counted on. A write may
// take long on a busy disk, and keeps nobody waiting.
func (s *Store) Hangs() error { return s.health.blind() }

// Health is nil while the store can take in blobs. Otherwise it says what keeps it from that: an operation that failed
// or hangs, or a directory that was replaced. What the store holds may be readable even so. It costs no I/O.
func (s *Store) Health() error { return s.health.err() }

// examine finds out whether the disk can be written to. It costs two system calls while nothing is wrong; else it
// writes a small file.
func (s *Store) examine() {
	if s.health.hung() != nil {
		return
	}
	err := s.writable()
	if err == nil && s.index.broken() {
		err = s.reindex()
	}
	if err == nil && s.state.broken.Load() {
		err = fmt.Errorf("%s: %w; restart the agent: %w", s.state.db.Path(), errDatabaseDamaged, content.ErrStorage)
	}
	if err != nil {
		s.health.fail(err)
		return
	}
	if s.health.err() == nil {
		return
	}
	probe := filepath.Join(s.ingestDir, "probe")
	if s.disk.writeFile(probe, make([]byte, 4096)) == nil && s.disk.remove(probe) == nil {
		s.health.clear()
		s.log.Info("the disk works again")
	}
}

func (s *Store) writable() error {
	there, err := os.Stat(s.dir(lockName))
	mine, lockErr := s.lock.Stat()
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && lockErr == nil && !os.SameFile(there, mine):
		return fmt.Errorf("%s was removed or replaced since the start; restart the agent: %w", s.opts.Path,
			content.ErrStorage)
	case err != nil:
		return diskError(err)
	}
	for _, dir := range []string{s.ingestDir, s.blobsDir} {
		err := unix.Access(dir, unix.W_OK|unix.X_OK)
		if errors.Is(err, fs.ErrNotExist) {
			err = s.disk.mkdirAll(dir)
		}
		if err != nil {
			return fmt.Errorf("%s cannot be written to: %w", dir, diskError(err))
		}
	}
	return nil
}

// diskError gives errors of the system the names that callers know: a full disk or quota is content.ErrNoSpace, any
// other refusal content.ErrStorage. Other errors pass unchanged.
func diskError(err error) error {
	if err == nil || errors.Is(err, content.ErrNoSpace) || errors.Is(err, content.ErrStorage) {
		return err
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	switch {
	case !ok, errno == syscall.ENOENT, errno == syscall.EEXIST:
		return err
	case errno == syscall.ENOSPC, errno == syscall.EDQUOT:
		return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", content.ErrStorage, err)
}
