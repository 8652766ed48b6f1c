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

// hangsAfter is how long an operation on the disk may take before the disk counts as hanging.
const hangsAfter = 10 * time.Second

// health is what is wrong with the disk, as the operations on it show.
type health struct {
	mu      sync.Mutex
	failure error // of the last operation that failed, until the disk was found to work again
	running map[*operation]struct{}
}

type operation struct {
	name  string
	start time.Time
}

func (h *health) begin(op, path string) *operation {
	o := &operation{name: op + " " + path, start: time.Now()}
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
	if err := h.hangs(); err != nil {
		return err
	}
	return h.failure
}

// hung is err as far as waiting for the disk is vain.
func (h *health) hung() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hangs()
}

func (h *health) hangs() error {
	for o := range h.running {
		if took := time.Since(o.start); took > hangsAfter {
			return fmt.Errorf("the disk hangs: %s has taken %s: %w", o.name, took.Round(time.Second), content.ErrStorage)
		}
	}
	return nil
}

// Health is nil while the store can take in blobs. Otherwise it says what keeps it from that: an operation that failed or
// hangs, or a directory that was replaced. What the store holds may be readable even so. It costs no I/O.
func (s *Store) Health() error { return s.health.err() }

// examine finds out whether the disk can be written to. It costs two system calls while nothing is wrong; else it writes a
// small file.
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
		return fmt.Errorf("%s was removed or replaced since the start; restart the agent: %w", s.opts.Path, content.ErrStorage)
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

// diskError gives errors of the system the names that callers know: a full disk or quota is content.ErrNoSpace, any other
// refusal content.ErrStorage. Other errors pass unchanged.
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
