package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Stats is what a server has handed out so far.
type Stats struct {
	// Bytes are the bytes of blob bodies, ManifestBytes those of manifests.
	Bytes, ManifestBytes int64
	// Requests are all requests but those for /v2/ itself; BlobRequests are the ones for blobs among them.
	Requests, BlobRequests int64
}

// Sub is what was handed out since an earlier reading.
func (s Stats) Sub(earlier Stats) Stats {
	return Stats{
		Bytes: s.Bytes - earlier.Bytes, ManifestBytes: s.ManifestBytes - earlier.ManifestBytes,
		Requests: s.Requests - earlier.Requests, BlobRequests: s.BlobRequests - earlier.BlobRequests,
	}
}

// Server serves a directory that Write has filled by the pull part of the OCI distribution specification, with Range
// requests on blobs. It lets anyone in.
type Server struct {
	dir                              string
	bytes, manifestBytes, all, blobs atomic.Int64
}

// NewServer serves dir.
func NewServer(dir string) *Server { return &Server{dir: dir} }

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	return Stats{
		Bytes: s.bytes.Load(), ManifestBytes: s.manifestBytes.Load(), Requests: s.all.Load(),
		BlobRequests: s.blobs.Load(),
	}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method+" is not served: images are made beforehand")
		return
	}
	rest, ok := strings.CutPrefix(path.Clean(r.URL.Path), "/v2")
	if !ok {
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "only /v2/ is served")
		return
	}
	if rest == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	s.all.Add(1)
	above, reference := path.Split(rest)
	repository, collection := path.Split(strings.TrimSuffix(above, "/"))
	switch collection {
	case "blobs":
		s.blobs.Add(1)
		s.serve(w, r, digest.Digest(reference), "application/octet-stream", &s.bytes)
	case "manifests":
		d := digest.Digest(reference)
		if !strings.Contains(reference, ":") {
			tagged, err := os.ReadFile(tagPath(s.dir, strings.Trim(repository, "/"), reference))
			if err != nil {
				refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no tag "+reference+" in "+repository)
				return
			}
			d = digest.Digest(tagged)
		}
		s.serve(w, r, d, v1.MediaTypeImageManifest, &s.manifestBytes)
	default:
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "only manifests and blobs are served")
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, d digest.Digest, mediaType string, count *atomic.Int64) {
	if d.Validate() != nil {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", string(d))
		return
	}
	f, err := os.Open(BlobPath(s.dir, d))
	if err != nil {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", string(d))
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", string(d))
	w.Header().Set("Etag", `"`+string(d)+`"`)
	http.ServeContent(&counter{ResponseWriter: w, count: count}, r, "", time.Time{}, f)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", mime.TypeByExtension(".json"))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// counter counts the bytes of a body as they are sent, and leaves the sending to the kernel (sendfile) where it can.
type counter struct {
	http.ResponseWriter
	count *atomic.Int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.count.Add(int64(n))
	return n, err
}

// ReadFrom hands the body over in pieces, so that a download that is cut short counts for what it took.
func (c *counter) ReadFrom(src io.Reader) (total int64, err error) {
	const piece = 1 << 20
	left := int64(-1)
	limited, ok := src.(*io.LimitedReader)
	if ok {
		src, left = limited.R, limited.N // sendfile sees through one limit only
	}
	for left != 0 {
		want := int64(piece)
		if left > 0 {
			want = min(want, left)
		}
		n, err := io.CopyN(c.ResponseWriter, src, want)
		c.count.Add(n)
		total += n
		if left > 0 {
			left -= n
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return total, err
		}
	}
	if ok {
		limited.N = left
	}
	return total, nil
}

// Options say what the server process serves, and where.
type Options struct {
	Dir string
	// Listen is the registry's address, Control that of its counters.
	Listen, Control string
	// CertFile and KeyFile make the registry speak HTTPS where both are set.
	CertFile, KeyFile string
	// Manner is what is odd about the registry.
	Manner Manner
}

// Run serves until ctx ends.
func Run(ctx context.Context, o Options) error {
	server := NewServer(o.Dir)
	handler, err := With(o.Manner, server)
	if err != nil {
		return err
	}
	registry := &http.Server{Addr: o.Listen, Handler: handler, ReadHeaderTimeout: time.Minute}
	control := &http.Server{Addr: o.Control, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(server.Stats()) },
	)}
	failed := make(chan error, 2)
	go func() {
		if o.CertFile != "" && o.KeyFile != "" {
			failed <- registry.ListenAndServeTLS(o.CertFile, o.KeyFile)
			return
		}
		failed <- registry.ListenAndServe()
	}()
	go func() { failed <- control.ListenAndServe() }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", o.Dir, err)
	case <-ctx.Done():
		return errors.Join(registry.Close(), control.Close())
	}
}
