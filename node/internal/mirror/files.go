package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// change is one step of an installation or removal. It does nothing when what it makes is there already.
type change struct {
	path    string // on the node
	content []byte
	mode    fs.FileMode
	linkTo  string
	remove  bool
	keep    bool // nothing is to be done
}

// apply reports whether it changed anything. Half a file that a crash left beside does not count.
func (c change) apply(o Options) (bool, error) {
	path := o.on(c.path)
	if err := removeHalf(path); err != nil {
		return false, err
	}
	if c.keep {
		return false, nil
	}
	if o.crash != nil {
		if err := o.crash(); err != nil {
			return false, err
		}
	}
	if c.remove {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	if c.linkTo != "" {
		return true, os.Symlink(c.linkTo, path)
	}
	now, err := readFile(path)
	if err != nil {
		return false, err
	}
	if now.exists && bytes.Equal(now.content, c.content) {
		return false, nil
	}
	return true, writeFile(path, c.content, c.mode)
}

// file is a file as it was found.
type file struct {
	exists  bool
	content []byte
	mode    fs.FileMode
}

// maxFile bounds what is read. No runtime's configuration comes near it.
const maxFile = 4 << 20

// readFile reads a file that need not exist. What is no regular file, or too large, or not to be reached, is foreign: a
// pipe would have no end, and a runtime cannot read it either.
func readFile(path string) (file, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file{}, errors.Join(leadsNowhere(path), leadsNowhere(filepath.Dir(path)))
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		return file{}, fmt.Errorf("%w: %w", errForeign, err)
	case err != nil:
		return file{}, err
	case !info.Mode().IsRegular():
		return file{}, fmt.Errorf("%w: it is no regular file", errForeign)
	case info.Size() > maxFile:
		return file{}, fmt.Errorf("%w: it has %d bytes, which is too much for a configuration", errForeign, info.Size())
	}
	content, err := os.ReadFile(path)
	return file{exists: err == nil, content: content, mode: info.Mode().Perm()}, err
}

// leadsNowhere is an error where path is a symbolic link to what is not there: or not here, where the node's file
// system is mounted elsewhere or in part.
func leadsNowhere(path string) error {
	target, err := os.Readlink(path)
	if err != nil {
		return nil //nolint:nilerr // no link
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s is a symbolic link to %s, which does not exist here; resolve it by hand", errForeign,
		path, target)
}

// writeFile replaces the file at path, or the one that a symbolic link at path points to, in one step that survives a
// crash. The owner stays who it was.
func writeFile(path string, content []byte, mode fs.FileMode) (err error) {
	if err := removeHalf(path); err != nil {
		return err
	}
	path, half := behind(path)
	dir := filepath.Dir(path)
	f, err := os.OpenFile(half, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
				return err
			}
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// behind is the file at path, or that to which a symbolic link at path points, and the name under which writeFile
// writes it. That name is always the same, so that what a crash leaves is found.
func behind(path string) (file, half string) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	return path, filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".shoal")
}

// removeHalf removes what a crash in the middle of writeFile left.
func removeHalf(path string) error {
	_, half := behind(path)
	if _, err := os.Lstat(half); err != nil {
		return nil //nolint:nilerr // there is nothing; a file system that is read-only must not be asked to remove it
	}
	return os.Remove(half)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeIfEmpty removes a directory that nothing is in; one that is not empty or not there is left so.
func removeIfEmpty(dir string) error {
	// Not os.Remove, which would take a link that somebody has put in its place.
	err := syscall.Rmdir(dir)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove directory %s: %w", dir, err)
	}
	return nil
}
