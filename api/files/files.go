// Package files reads the small files that a configuration names: certificates, keys, configurations.
package files

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Most is how long such a file may be, in bytes. The authorities of a whole company take a hundredth of it.
const Most = 16 << 20

// Read returns what a regular file holds. It fails for anything else that the path may lead to, which might have no
// end, such as a device, or no beginning, such as a pipe that nobody writes to.
func Read(path string) (data []byte, err error) {
	info, err := os.Stat(path) // before it is opened, for which a pipe has to be waited for
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is a directory; name a file")}
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is no regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	data, err = io.ReadAll(io.LimitReader(f, Most+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > Most:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("is larger than %d MiB", Most>>20)}
	}
	return data, nil
}

// KeyPair reads a certificate and its key. Its errors name the keys of the configuration in which the two files stand.
func KeyPair(certKey, certFile, keyKey, keyFile string) (tls.Certificate, error) {
	cert, err := Read(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s: %w", certKey, err)
	}
	key, err := Read(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s: %w", keyKey, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s %s, %s %s: %w", certKey, certFile, keyKey, keyFile, err)
	}
	return pair, nil
}
