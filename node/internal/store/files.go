package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// disk performs every file operation that changes something, so that there is one place that says what a full disk
// means, and one where tests make operations fail or the process die.
type disk struct {
	// fault, where set, runs before each operation; its error is returned instead of performing the operation.
	fault  func(op, path string) error
	health *health // hears how operations end; may be nil
	// beforeRead, where set, runs before each read for a caller, which is none of the operations above.
	beforeRead func(path string)
}

func (k disk) do(op, path string, f func() error) (err error) {
	if k.health != nil {
		running := k.health.begin(op, path)
		defer func() { k.health.end(running, err) }()
	}
	if k.fault != nil {
		if err := k.fault(op, path); err != nil {
			return fmt.Errorf("%s %s: %w", op, path, diskError(err))
		}
	}
	return diskError(f())
}

func (k disk) create(path string) (f *os.File, err error) {
	err = k.do("create", path, func() error {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		return err
	})
	return f, err
}

func (k disk) writeAt(f *os.File, p []byte, off int64) error {
	return k.do("write", f.Name(), func() error {
		_, err := f.WriteAt(p, off)
		return err
	})
}

func (k disk) truncate(f *os.File, size int64) error {
	return k.do("truncate", f.Name(), func() error { return f.Truncate(size) })
}

func (k disk) sync(f *os.File) error {
	return k.do("fsync", f.Name(), f.Sync)
}

func (k disk) rename(from, to string) error {
	return k.do("rename", to, func() error { return os.Rename(from, to) })
}

// remove removes a file. Removal of one that is not there is no error.
func (k disk) remove(path string) error {
	return k.do("remove", path, func() error {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// syncDir makes the directory's entries survive a loss of power.
func (k disk) syncDir(path string) error {
	return k.do("fsync directory", path, func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// mkdirAll makes a directory and its missing parents such that they survive a loss of power.
func (k disk) mkdirAll(path string) error {
	switch fi, err := os.Stat(path); {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return k.do("mkdir", path, func() error { return fmt.Errorf("%s: %w", path, syscall.ENOTDIR) })
	}
	parent := filepath.Dir(path)
	if err := k.mkdirAll(parent); err != nil {
		return err
	}
	err := k.do("mkdir", path, func() error {
		if err := os.Mkdir(path, 0o700); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return k.syncDir(parent)
}

// tempSuffix marks a file that writeFile has not finished.
const tempSuffix = ".tmp"

// writeFile replaces a small file whole: after a crash it holds the old or the new bytes. The entry itself is on disk
// once the caller has synced the directory.
func (k disk) writeFile(path string, data []byte) error {
	tmp := path + tempSuffix
	err := func() error {
		f, err := k.create(tmp)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // its bytes are synced or the write has failed
		if err := k.truncate(f, int64(len(data))); err != nil {
			return err
		}
		if err := k.writeAt(f, data, 0); err != nil {
			return err
		}
		return k.sync(f)
	}()
	if err == nil {
		err = k.rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // else recovery does it
	}
	return err
}

// lockDir takes the directory for this process until unlockDir or its end.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (its lock: %s)", ErrInUse, f.Name())
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// unlockDir gives the directory up. Closing alone would not, while a process that this one has just forked still holds
// a copy of the descriptor.
func unlockDir(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}

// bootID names this run of the kernel, within which every completed write is readable again, whatever becomes of the
// process. It is empty where the kernel does not tell, and then nothing is concluded from it.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// freeSpace is the number of bytes that this process may still write to path's file system.
func freeSpace(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func diskSize(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("size of the disk that holds %s: %w", path, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// DiskSize is the number of bytes of the file system that holds the store.
func (s *Store) DiskSize() (int64, error) { return s.disksWord(diskSize) }

func (s *Store) freeDisk() (int64, error) { return s.disksWord(s.opts.FreeSpace) }

// disksWord asks the file system, which may hang as any other read.
func (s *Store) disksWord(question func(path string) (int64, error)) (int64, error) {
	return ask(s, s.opts.Path, func() (int64, error) { return question(s.opts.Path) })
}

// allocated is the number of bytes that a sparse file takes on disk.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // stat(2): blocks are of 512 bytes whatever the file system's are
	}
	return fi.Size()
}

// fanned is the path of a digest's file below root, spread over 256 folders.
func fanned(root string, d digest.Digest) string {
	return filepath.Join(root, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// flat is the path of a digest's file below root in containerd's layout, which the ingests use too.
func flat(root string, d digest.Digest) string {
	return filepath.Join(root, d.Algorithm().String(), d.Encoded())
}

// hashRange feeds n bytes of f from off to h through a small buffer.
func hashRange(h io.Writer, f io.ReaderAt, off, n int64) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	got, err := io.CopyBuffer(onlyWriter{h}, io.NewSectionReader(f, off, n), *buf)
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// onlyWriter hides a hash's other methods, so that io.CopyBuffer uses the buffer it is given.
type onlyWriter struct{ io.Writer }
