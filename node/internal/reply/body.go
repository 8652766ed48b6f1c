package reply

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// firstPiece is how many bytes are read, at most, before the header of an answer goes out.
const firstPiece = 32 << 10

// First reads the first of n bytes. Where they do not come before due is closed, header is called, which sends the
// header of the answer without them.
func (x *Exchange) First(body io.Reader, n int64, due <-chan struct{}, header func()) ([]byte, error) {
	buf := make([]byte, min(n, firstPiece))
	var got int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err = io.ReadAtLeast(body, buf, min(1, len(buf)))
	}()
	select {
	case <-done:
	case <-due:
		header()
		flushed := http.NewResponseController(x.W).Flush()
		<-done
		if flushed != nil && !errors.Is(flushed, http.ErrNotSupported) {
			err = errors.Join(err, flushed)
		}
	}
	return buf[:got], err
}

// Stream writes first and then the rest of n bytes from body. The rest goes by the body's WriteTo and the connection's
// ReadFrom, so that file pages move without copying. Nothing may wrap either.
func (x *Exchange) Stream(first []byte, body io.Reader, n int64) error {
	if _, err := x.W.Write(first); err != nil {
		return err
	}
	if int64(len(first)) == n {
		return nil
	}
	if err := http.NewResponseController(x.W).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	copied, err := io.Copy(x.W, body)
	if err != nil {
		return err
	}
	if total := int64(len(first)) + copied; total != n {
		return fmt.Errorf("%d of %d bytes: %w", total, n, io.ErrUnexpectedEOF)
	}
	return nil
}
