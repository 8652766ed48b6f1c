package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// fileID reports whether a file of the runtime still is the one that was looked at.
type fileID struct{ size, modTime int64 }

func idOf(fi fs.FileInfo) fileID { return fileID{size: fi.Size(), modTime: fi.ModTime().UnixNano()} }

func (s *Store) runtimePath(d digest.Digest) string {
	return flat(filepath.Join(s.opts.RuntimePath, "blobs"), d)
}

// runtimeFile looks d up in the runtime's content store. A file there was checked by the runtime when it committed it.
// One that was found not to match since is content.ErrNotFound. It keeps nobody waiting for a disk that hangs.
func (s *Store) runtimeFile(d digest.Digest) (fs.FileInfo, error) {
	if s.opts.RuntimePath == "" {
		return nil, content.ErrNotFound
	}
	path := s.runtimePath(d)
	fi, err := ask(s, path, func() (fs.FileInfo, error) { return os.Stat(path) })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, content.ErrNotFound
	case err != nil:
		return nil, err
	case !s.usable(d, fi):
		return nil, content.ErrNotFound
	}
	return fi, nil
}

func (s *Store) usable(d digest.Digest, fi fs.FileInfo) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return fi.Mode().IsRegular() && fi.Size() <= content.MaxSize && s.rejected[d] != idOf(fi)
}

// statRuntime describes a blob of the runtime. The entry is nil while its chunk map has not been computed.
func (s *Store) statRuntime(d digest.Digest) (Info, *entry, error) {
	fi, err := s.runtimeFile(d)
	if errors.Is(err, content.ErrNotFound) {
		s.forgetRuntime(d)
	}
	if err != nil {
		return Info{}, nil, err
	}
	info, e := s.runtimeInfo(d, fi)
	return info, e, nil
}

func (s *Store) runtimeInfo(d digest.Digest, fi fs.FileInfo) (Info, *entry) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.blobs[d]
	if e != nil && e.runtime && idOf(fi) == (fileID{e.size, e.modTime}) {
		return e.info(s.pinned), e
	}
	return Info{
		Digest: d, Size: fi.Size(), Pinned: s.pinned[d] > 0, FromRuntime: true, LastUsed: fi.ModTime(),
	}, nil
}

// openRuntime opens the runtime's file. The entry is nil while its chunk map has not been computed. A file that cannot
// be opened is content.ErrNotFound, like one that is not there.
func (s *Store) openRuntime(d digest.Digest) (*os.File, Info, *entry, error) {
	if s.opts.RuntimePath == "" {
		return nil, Info{}, nil, content.ErrNotFound
	}
	f, err := os.Open(s.runtimePath(d))
	if errors.Is(err, fs.ErrNotExist) {
		s.forgetRuntime(d)
		return nil, Info{}, nil, content.ErrNotFound
	}
	if err != nil {
		if !exhausted(err) {
			s.log.Warn("a file of the runtime cannot be opened", "digest", d, "error", err)
			err = fmt.Errorf("%w: %w", content.ErrNotFound, err)
		}
		return nil, Info{}, nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, Info{}, nil, errors.Join(err, f.Close())
	}
	if !s.usable(d, fi) {
		return nil, Info{}, nil, errors.Join(content.ErrNotFound, f.Close())
	}
	info, e := s.runtimeInfo(d, fi)
	if e != nil {
		e.touch(time.Now())
	}
	return f, info, e, nil
}

// mapRuntime returns the chunk map of a blob of the runtime, computing it at the first call.
func (s *Store) mapRuntime(d digest.Digest) (*content.ChunkMap, error) {
	_, e, err := s.statRuntime(d)
	if err != nil {
		return nil, err
	}
	if e != nil {
		if m, err := readMeta(s.mapPath(e), d); err == nil {
			return m.chunks, nil
		}
	}
	m, err, _ := s.mapping.Do(string(d), func() (any, error) {
		s.reading.Store(d, nil)
		defer s.reading.Delete(d)
		return s.computeRuntimeMap(s.stopping, d)
	})
	if err != nil {
		return nil, err
	}
	return m.(*content.ChunkMap), nil
}

// Unmapped is how many bytes of a blob of the runtime ChunkMap would read now: all of them where its map has not been
// computed, and is not being computed for somebody else.
func (s *Store) Unmapped(d digest.Digest) int64 {
	if _, running := s.reading.Load(d); running {
		return 0
	}
	if own, err := s.entry(d); err != nil || own != nil && !own.runtime {
		return 0
	}
	info, e, err := s.statRuntime(d)
	if err != nil || e != nil {
		return 0
	}
	return info.Size
}

func (s *Store) computeRuntimeMap(ctx context.Context, d digest.Digest) (*content.ChunkMap, error) {
	f, _, _, err := s.openRuntime(d)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	chunks, err := s.hashFile(ctx, f, fi.Size(), d)
	if errors.Is(err, content.ErrDigestMismatch) {
		s.reject(d, fi)
	}
	if err != nil {
		return nil, err
	}
	defer s.lockDigest(d)()
	if own, err := s.entry(d); err != nil || (own != nil && !own.runtime) {
		return chunks, err // an ingest was faster
	}
	e := newEntry(d, fi.Size(), "", fi.ModTime())
	e.runtime, e.modTime = true, fi.ModTime().UnixNano()
	if err := s.writeMap(e, chunks); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.enlist(e)
	s.mu.Unlock()
	return chunks, nil
}

// reject stops a damaged file of the runtime from being used. Its repair is the runtime's affair.
func (s *Store) reject(d digest.Digest, fi fs.FileInfo) {
	s.mu.Lock()
	s.rejected[d] = idOf(fi)
	s.mu.Unlock()
	s.metrics.damaged.Inc()
	s.log.Error("a file of the runtime does not match its digest", "digest", d, "path", s.runtimePath(d))
	s.forgetRuntime(d)
}

// forgetRuntime drops the chunk map of a blob that the runtime does not hold any more.
func (s *Store) forgetRuntime(d digest.Digest) {
	s.mu.RLock()
	e := s.blobs[d]
	s.mu.RUnlock()
	if e == nil || !e.runtime {
		return
	}
	defer s.lockDigest(d)()
	s.mu.Lock()
	if s.blobs[d] != e {
		s.mu.Unlock()
		return
	}
	s.unlist(e)
	s.mu.Unlock()
	var chunks *content.ChunkMap
	if m, err := readMeta(s.mapPath(e), d); err == nil {
		chunks = m.chunks
	}
	err := s.index.remove(d, chunks)
	if err == nil {
		err = s.disk.remove(s.mapPath(e))
	}
	if err != nil {
		s.log.Warn("forget blob of the runtime: leftovers stay until the next start", "digest", d, "error", err)
	}
}

// dropRuntimeMap removes the kept map of a blob that the store now holds itself. The index entries are the same.
func (s *Store) dropRuntimeMap(d digest.Digest) {
	if s.opts.RuntimePath != "" {
		_ = s.disk.remove(fanned(s.runtimeMaps, d) + mapSuffix) // else recovery does it
	}
}

// listRuntime calls f with every blob in the runtime's content store.
func (s *Store) listRuntime(ctx context.Context, f func(Info)) error {
	if s.opts.RuntimePath == "" {
		return nil
	}
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir, err := os.Open(filepath.Join(s.opts.RuntimePath, "blobs", alg.String()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = eachName(ctx, dir, func(name string) {
			d := digest.NewDigestFromEncoded(alg, name)
			if d.Validate() != nil {
				return
			}
			if fi, err := s.runtimeFile(d); err == nil {
				info, _ := s.runtimeInfo(d, fi)
				f(info)
			}
		})
		if err := errors.Join(err, dir.Close()); err != nil {
			return err
		}
	}
	return nil
}

// eachName calls f with the names in a directory, a batch at a time.
func eachName(ctx context.Context, dir *os.File, f func(name string)) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			f(name)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hashFile computes the chunk map of a file's size bytes, with that of the pieces, and checks in the same pass that
// their digest is d.
func (s *Store) hashFile(ctx context.Context, f *os.File, size int64, d digest.Digest) (*content.ChunkMap, error) {
	m, err := s.sumFile(ctx, f, size, d)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// sumFile does what hashFile does, and gives the map also where the digest is another.
func (s *Store) sumFile(ctx context.Context, f *os.File, size int64, d digest.Digest) (*content.ChunkMap, error) {
	leaves, err := content.NewSummer(content.CutLeaves(size))
	if err != nil {
		return nil, err
	}
	whole := d.Algorithm().Hash()
	sums := []io.Writer{whole, leaves}
	m := leaves.Map()
	if cut := content.Pieces.Cut(size); cut != m.Cut() {
		pieces, err := content.NewSummer(cut)
		if err != nil {
			return nil, err
		}
		m.SetPieces(pieces.Map())
		sums = append(sums, pieces)
	}
	all := io.MultiWriter(sums...)
	for i := range m.Len() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		off, n := m.Cut().Range(i)
		err := s.watched("hash", f.Name(), false, func() error { return hashRange(all, f, off, n) })
		if err != nil {
			return nil, fmt.Errorf("hash chunk %d: %w", i, err)
		}
	}
	if got := digest.NewDigest(d.Algorithm(), whole); got != d {
		return m, fmt.Errorf("the bytes are those of %s: %w", got, content.ErrDigestMismatch)
	}
	return m, nil
}
