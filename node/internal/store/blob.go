package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// buffers holds the store's copy and hash buffers: small enough to stay in a core's second-level cache.
var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// Blob is an open committed blob. It stays readable after the blob's eviction, until Close.
type Blob struct {
	digest digest.Digest
	size   int64
	file   *os.File
	check  *checker

	release func() // says that it is not open any more
}

var _ content.Reader = (*Blob)(nil)

// Size is the blob's size in bytes.
func (b *Blob) Size() int64 { return b.size }

// Arrived is its size: it is all here.
func (b *Blob) Arrived() int64 { return b.size }

// Held is true; see content.Held.
func (b *Blob) Held() bool { return true }

// Range returns the n bytes from off. Each chunk is checked before any of it is given, unless it was of late and its
// pages have not left memory since. Where one is wrong or cannot be read, the blob is dropped, and reading fails with
// an error that is content.ErrNotFound. The result also is an io.WriterTo; to an http.ResponseWriter over plain TCP it
// sends by sendfile(2). It stays readable after the blob is closed.
func (b *Blob) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > b.size-n {
		return nil, fmt.Errorf("%s: range of %d bytes at %d is outside its %d bytes", b.digest, n, off,
			b.size)
	}
	sec, err := b.check.store.section(ctx, b.file, off, n)
	if err != nil {
		return nil, err
	}
	whole := n == b.size
	if whole && !b.check.mapped() {
		return b.check.prove(sec), nil
	}
	sec.watch = b.check.watch(sec.file)
	if whole {
		sec.ended = b.check.checks.gaveAll
	}
	return sec, nil
}

// Close releases the file.
func (b *Blob) Close() error {
	b.release()
	return b.file.Close()
}

// section reads a range of a file whose bytes are all there.
type section struct {
	ctx  context.Context
	name string
	// r is positioned at the next byte. It is an *os.File of its own where possible, for sendfile(2) reads at a file's
	// own position, which the section must therefore share with nobody.
	r         io.Reader
	file      *os.File
	pos, left int64
	watch     *watch // says how far the section may go; nil: to its end
	ended     func() // runs when the last byte has gone out; may be nil
}

// section opens f anew, and does not wait for a disk that hangs.
func (s *Store) section(ctx context.Context, f *os.File, off, n int64) (*section, error) {
	return ask(s, f.Name(), func() (*section, error) { return newSection(ctx, f, off, n) })
}

// newSection opens f anew. It goes by the descriptor, because the file may have been renamed or unlinked meanwhile.
func newSection(ctx context.Context, f *os.File, off, n int64) (*section, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("range of %s: %w", f.Name(), err)
	}
	s := &section{ctx: ctx, name: f.Name(), pos: off, left: n}
	ctlErr := conn.Control(func(fd uintptr) {
		if s.file, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
			s.r = s.file
			_, err = s.file.Seek(off, io.SeekStart)
			return
		}
		// Without /proc a duplicate has to do. It shares its position with f, so it is read by pread and never sent.
		var dup int
		if dup, err = syscall.Dup(int(fd)); err == nil {
			s.file = os.NewFile(uintptr(dup), f.Name())
			s.r = io.NewSectionReader(s.file, off, n)
		}
	})
	if ctlErr != nil {
		err = os.ErrClosed // which nobody knows by the error that there is for it
	}
	if err != nil {
		if s.file != nil {
			_ = s.file.Close()
		}
		return nil, fmt.Errorf("range of %s: %w", f.Name(), err)
	}
	return s, nil
}

func (s *section) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	want, err := s.clear(int64(len(p)))
	if err != nil {
		return 0, err
	}
	n, err := s.r.Read(p[:want])
	s.advance(int64(n))
	if err == io.EOF && s.left > 0 {
		err = s.short()
	}
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, readError(err)
}

// clear returns how many bytes may go out now, at most.
func (s *section) clear(most int64) (int64, error) {
	most = min(most, s.left)
	if s.watch == nil || most == 0 {
		return most, nil
	}
	pos := s.pos
	n, err := ask(s.watch.store, s.name, func() (int64, error) { return s.watch.clear(pos, most) })
	if err != nil {
		return 0, fmt.Errorf("%s: at byte %d: %w", s.name, pos, err)
	}
	return n, nil
}

func (s *section) advance(n int64) {
	s.pos += n
	if s.left -= n; s.left == 0 && n > 0 && s.ended != nil {
		s.ended()
	}
}

const (
	// sendSize bounds how much is sent between two looks at the context.
	sendSize = 16 << 20
	// endSize is how much is sent at the end by itself, after one more look at what went before.
	endSize = 32 << 10
)

// WriteTo hands w an *io.LimitedReader over an *os.File, the form that net and net/http know to send without copying.
func (s *section) WriteTo(w io.Writer) (total int64, err error) {
	for s.left > 0 {
		if err := s.ctx.Err(); err != nil {
			return total, err
		}
		want := int64(sendSize)
		if s.watch != nil && s.left > endSize {
			want = min(want, s.left-endSize)
		}
		if want, err = s.clear(want); err != nil {
			return total, err
		}
		n, err := io.Copy(w, &io.LimitedReader{R: s.r, N: want})
		total += n
		s.advance(n)
		if err != nil {
			return total, readError(err)
		}
		if n < want {
			return total, s.short()
		}
	}
	return total, nil
}

func (s *section) short() error {
	return fmt.Errorf("%s: file ends %d bytes early: %w: %w", s.name, s.left, content.ErrStorage, io.ErrUnexpectedEOF)
}

// readError is the error of a copy, which is a diskError where reading failed, and not the connection.
func readError(err error) error {
	if _, reading := errors.AsType[*fs.PathError](err); reading || errors.Is(err, syscall.EIO) { // of sendfile
		return diskError(err)
	}
	return err
}

func (s *section) Close() error { return s.file.Close() }
