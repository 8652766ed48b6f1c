package view

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// ContentsPath is where the administrator's socket of an agent gives and takes content; a digest follows it.
const ContentsPath = "/contents/"

// Saved refuses content for a terminal where file, the flag -o, does not ask for that: it is no text, and a terminal
// may obey a part of it. It also refuses a file in a folder that is not there.
func Saved(file string, out io.Writer) error {
	if file == "" && IsTerminal(out) {
		return errors.New("content is no text for a terminal: -o FILE writes it to a file, and -o - here all the same")
	}
	return InFolder(file)
}

// InFolder refuses a file that cannot be made because its folder is not there.
func InFolder(file string) error {
	if folder := filepath.Dir(file); file != "" {
		if at, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) || err == nil && !at.IsDir() {
			return fmt.Errorf("there is no folder %s", folder)
		}
	}
	return nil
}

// Save writes content to a file once it has proved to be that of the digest, or to out where file is "-" or empty.
// There, who reads it has got it before its end is checked, and learns of a mismatch by the error.
func Save(file string, out io.Writer, d digest.Digest, body io.Reader) error {
	if file == "-" || file == "" {
		return copyVerified(out, d, body)
	}
	temporary, err := os.CreateTemp(filepath.Dir(file), ".shoal-*")
	if err != nil {
		return err
	}
	err = errors.Join(copyVerified(temporary, d, body), temporary.Close())
	if err == nil {
		err = os.Chmod(temporary.Name(), 0o644) //nolint:gosec // as any file that a person saves
	}
	if err == nil {
		err = os.Rename(temporary.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return nil
}

// Sum finds out the digest of content and its size in bytes, and goes back to its start.
func Sum(content io.ReadSeeker) (d digest.Digest, size int64, err error) {
	sum := digest.SHA256.Digester()
	if size, err = io.Copy(sum.Hash(), content); err == nil {
		_, err = content.Seek(0, io.SeekStart)
	}
	return sum.Digest(), size, err
}

func copyVerified(w io.Writer, d digest.Digest, body io.Reader) error {
	sum := d.Verifier()
	n, err := io.Copy(io.MultiWriter(w, sum), body)
	if err != nil && n == 0 {
		return fmt.Errorf("%s: %w", d, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w after %s", d, err, Bytes(n))
	}
	if !sum.Verified() {
		return fmt.Errorf("%s: the bytes that came do not match it", d)
	}
	return nil
}
