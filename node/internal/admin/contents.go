package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

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
//	PUT /contents/DIGEST   takes them in
func NewContents(s Shelf, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+view.ContentsPath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		if err := s.give(w, r); err != nil {
			refuse(w, err)
		}
	})
	mux.HandleFunc("PUT "+view.ContentsPath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		d, err := named(r)
		if err == nil && r.ContentLength < 0 {
			err = &badRequest{errors.New("say how many bytes there are: Content-Length")}
		}
		if err == nil {
			err = s.Put(r.Context(), d, r.Body, r.ContentLength)
			// To a client that still sends, an answer that comes before the end is a broken connection.
			_, _ = io.Copy(io.Discard, r.Body)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		log.Info("added by the administrator", "digest", d, "bytes", r.ContentLength)
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
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

// badRequest is a request that makes no sense.
type badRequest struct{ error }

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
	switch {
	case errors.As(err, &bad), errors.Is(err, content.ErrDigestMismatch):
		status = http.StatusBadRequest
	case errors.Is(err, content.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, content.ErrNoSpace):
		status = http.StatusInsufficientStorage
	}
	text(w, status, err.Error()+"\n")
}
