package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// Shelf is where the administrator takes content from, and puts content into.
type Shelf struct {
	// Open opens what this node holds; it fails with content.ErrNotFound where it does not.
	Open func(digest.Digest) (body io.ReadCloser, size int64, err error)
	// Put takes content in, and fails with content.ErrDigestMismatch where it is other than its digest says.
	Put func(ctx context.Context, d digest.Digest, body io.Reader, size int64) error
}

// NewContents is the handler of the administrator's socket. Unlike the registry front it asks for no credentials, and
// unlike the views it shows and changes what is cached, so it must be served where the node's root alone reaches it.
//
//	GET /contents/DIGEST   the bytes
//	PUT /contents/DIGEST   takes them in, as long as they keep coming
func NewContents(s Shelf, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+view.ContentsPath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		if err := s.give(w, r); err != nil {
			refuse(w, err)
		}
	})
	mux.HandleFunc("PUT "+view.ContentsPath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		d, err := s.take(w, r)
		if err != nil {
			refuse(w, err)
			return
		}
		log.Info("added by the administrator", "digest", d, "bytes", r.ContentLength)
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

const (
	// bodyPause is for how long nothing may come of a body.
	bodyPause = 30 * time.Second
	// restWithin is for how long the rest of a body is read that is not wanted any more. To a client that still sends,
	// an answer that comes before the end may be a broken connection.
	restWithin = 5 * time.Second
)

// take takes in the body of a request.
func (s Shelf) take(w http.ResponseWriter, r *http.Request) (digest.Digest, error) {
	body := &pacedBody{Reader: r.Body, conn: http.NewResponseController(w)}
	// What is left in the end is not waited for, nor is it asked for.
	defer func() {
		w.Header().Set("Connection", "close")
		if r.Header.Get("Expect") == "" || body.begun {
			_ = body.conn.SetReadDeadline(time.Now().Add(restWithin))
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}()
	d, err := named(r)
	switch {
	case err != nil:
		return d, err
	case r.ContentLength < 0:
		return d, &badRequest{errors.New("say how many bytes there are: Content-Length")}
	case r.ContentLength > content.MaxSize:
		return d, &badRequest{fmt.Errorf("%d bytes are too many: a blob has at most %d", r.ContentLength,
			int64(content.MaxSize))}
	}
	err = s.Put(r.Context(), d, body, r.ContentLength)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = &stopped{fmt.Errorf("no more of the content came for %s: %w", bodyPause, err)}
	}
	return d, err
}

// pacedBody is a body of which something has to come within each bodyPause.
type pacedBody struct {
	io.Reader
	conn  *http.ResponseController
	begun bool
}

func (b *pacedBody) Read(p []byte) (int, error) {
	b.begun = true
	_ = b.conn.SetReadDeadline(time.Now().Add(bodyPause))
	return b.Reader.Read(p)
}

func (s Shelf) give(w http.ResponseWriter, r *http.Request) error {
	d, err := named(r)
	if err != nil {
		return err
	}
	body, size, err := s.Open(d)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(size))
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler) // a short answer must not look like a whole one
	}
	return nil
}

// badRequest is a request that makes no sense, and stopped one whose body does not come.
type (
	badRequest struct{ error }
	stopped    struct{ error }
)

func named(r *http.Request) (digest.Digest, error) {
	d := digest.Digest(r.PathValue("digest"))
	if err := d.Validate(); err != nil {
		return "", &badRequest{fmt.Errorf("%q is no digest: %w; write sha256: and 64 digits", d, err)}
	}
	return d, nil
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var bad *badRequest
	var late *stopped
	switch {
	case errors.As(err, &late):
		status = http.StatusRequestTimeout
	case errors.As(err, &bad), errors.Is(err, content.ErrDigestMismatch):
		status = http.StatusBadRequest
	case errors.Is(err, content.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, content.ErrNoSpace):
		status = http.StatusInsufficientStorage
	}
	text(w, status, err.Error()+"\n")
}
