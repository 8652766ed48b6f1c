package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
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
	at := c.path
	if c.remove || c.linkTo != "" {
		at = filepath.Dir(at) // it is not the file behind a link that is meant
	}
	if err := o.contains(at); err != nil && !c.keep {
		return false, fmt.Errorf("%s: %w", c.path, err)
	}
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
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return false, err
	}
	if c.linkTo != "" {
		return true, os.Symlink(c.linkTo, path)
	}
	now, err := readUpTo(path, maxGrown)
	if err != nil {
		return false, err
	}
	if now.exists && bytes.Equal(now.content, c.content) {
		return false, nil
	}
	err = writeFile(path, c.content, c.mode)
	if noRoom(err) && now.exists && len(c.content) < len(now.content) {
		err = shorten(path, c.content)
	}
	return true, err
}

func noRoom(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// shorten puts less in the place of a file's content, for which a full disk has room. A crash in the midst of it leaves
// a part of both, which no other way on a full disk would spare.
func shorten(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// byteOrderMark is what some editors put before a text in UTF-8.
const byteOrderMark = "\ufeff"

// cutMark is the byte order mark that content begins with, if it does, and the rest.
func cutMark(content []byte) (mark, rest []byte) {
	n := 0
	if bytes.HasPrefix(content, []byte(byteOrderMark)) {
		n = len(byteOrderMark)
	}
	return content[:n:n], content[n:]
}

// isBlank reports whether content says nothing.
func isBlank(content []byte) bool {
	_, rest := cutMark(content)
	return len(bytes.TrimSpace(rest)) == 0
}

// makeDirs makes a directory, and those that it lies in, so that every runtime may read them. Podman without root
// refuses all pulls where it may not read the folder of its registries, and the umask may be narrow.
func makeDirs(dir string) error {
	const mode = 0o755
	switch err := os.Mkdir(dir, mode); {
	case err == nil:
		return os.Chmod(dir, mode)
	case errors.Is(err, fs.ErrNotExist):
		if err := makeDirs(filepath.Dir(dir)); err != nil {
			return err
		}
		return makeDirs(dir)
	}
	return os.MkdirAll(dir, mode) // it is there, or it says why it can't be
}

// file is a file as it was found.
type file struct {
	exists  bool
	content []byte
	mode    fs.FileMode
}

const (
	// maxFile bounds what is read. No runtime's configuration comes near it.
	maxFile = 4 << 20
	// maxGrown bounds what is read of a file that was written here, to take that out again. Somebody may have added to
	// it since.
	maxGrown = 64 << 20
)

// errTooLarge is that a file has more bytes than are read.
var errTooLarge = fmt.Errorf("%w: it has too many bytes for a configuration", errForeign)

// readFile reads a file that need not exist. What is no regular file, or too large, or not to be reached, is foreign: a
// pipe would have no end, and a runtime cannot read it either.
func readFile(path string) (file, error) { return readUpTo(path, maxFile) }

func readUpTo(path string, most int64) (file, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file{}, leadsNowhere(path)
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		return file{}, fmt.Errorf("%w: %w", errForeign, err)
	case err != nil:
		return file{}, err
	case !info.Mode().IsRegular():
		return file{}, fmt.Errorf("%w: it is no regular file", errForeign)
	case info.Size() > most:
		return file{}, fmt.Errorf("%w: %d, and no more than %d are read", errTooLarge, info.Size(), most)
	}
	content, err := os.ReadFile(path)
	return file{exists: err == nil, content: content, mode: info.Mode() & modeBits}, err
}

// modeBits are the bits of a mode that chmod(2) sets.
const modeBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// leadsNowhere is an error where path, or a folder that it lies in, is a symbolic link to what is not there: or not
// here, where the node's file system is mounted elsewhere or in part.
func leadsNowhere(path string) error {
	for ; path != filepath.Dir(path); path = filepath.Dir(path) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if target, err := os.Readlink(path); err == nil {
			return fmt.Errorf("%w: %s is a symbolic link to %s, which does not exist here; resolve it by hand",
				errForeign, path, target)
		}
	}
	return nil
}

// contains is an error where a path on the node leads out of its root. An absolute link means another place for the
// node than here, and that is nobody's to write to.
func (o Options) contains(path string) error {
	root, err := realPath(o.Root)
	if err != nil {
		return err
	}
	at := o.on(path)
	for at != filepath.Dir(at) {
		led, err := realPath(at)
		if errors.Is(err, fs.ErrNotExist) {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return nil //nolint:nilerr // whoever reads it says so
		}
		if led != root && !strings.HasPrefix(led, strings.TrimSuffix(root, "/")+"/") {
			return fmt.Errorf("%w: it leads to %s by a symbolic link, out of the root %s; run this on the node "+
				"itself, or make the link a relative one", errForeign, led, o.Root)
		}
		return nil
	}
	return nil
}

// realPath is an absolute path without symbolic links.
func realPath(path string) (string, error) {
	led, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(led)
}

// writeFile replaces the file at path, or the one that a symbolic link at path points to, in one step that survives a
// crash. The owner stays who it was, and so do the extended attributes, such as an access control list or a label.
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
	if info, err := os.Stat(path); err == nil {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
				return err
			}
		}
		copyAttributes(path, f)
	}
	if err := f.Chmod(mode); err != nil {
		return err
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

// copyAttributes gives a file the extended attributes of another, as far as its file system and our rights allow.
func copyAttributes(from string, to *os.File) {
	names := make([]byte, 64<<10) // the most that Linux gives
	n, err := unix.Listxattr(from, names)
	if err != nil {
		return
	}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		if len(name) == 0 || strings.HasPrefix(string(name), "security.ima") ||
			strings.HasPrefix(string(name), "security.evm") { // these are about the content
			continue
		}
		if k, err := unix.Getxattr(from, string(name), value); err == nil {
			_ = unix.Fsetxattr(int(to.Fd()), string(name), value[:k], 0)
		}
	}
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

// removeIfEmpty removes a directory that nothing is in. One that is not empty, that is not there, or that something is
// mounted at is left so.
func removeIfEmpty(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // which a file system that is read-only does not say
	}
	// Not os.Remove, which would take a link that somebody has put in its place.
	err := syscall.Rmdir(dir)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.EBUSY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove directory %s: %w", dir, err)
	}
	return nil
}
