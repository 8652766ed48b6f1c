// Package badregistry is a registry for tests that can be all that a registry should not: slow, broken, throttling,
// lying. A Mode says what is wrong with it now; it may change at any time.
package badregistry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Mode is what is wrong with the registry.
type Mode string

// Modes. Those that chaos plans have are called as there.
const (
	Good      Mode = ""
	Down      Mode = "down"     // connections are reset as soon as they are made
	Dead      Mode = "dead"     // nothing is ever answered
	Flap      Mode = "flap"     // every other second it is down
	Reset     Mode = "reset"    // one blob of three breaks off half-way with a TCP reset
	Drip      Mode = "drip"     // bodies come at 256 KiB/s
	Trickle   Mode = "trickle"  // every third answer with a blob comes at 2 KiB/s
	Late      Mode = "late"     // every answer begins a second late
	Throttle  Mode = "throttle" // every other request is answered with 429
	Errors    Mode = "errors"   // every other request is answered with 500 and an HTML page
	WrongData Mode = "wrong"    // blobs have the right length and wrong bytes
	WrongSize Mode = "size"     // blobs end cleanly before or after their end
	NoRange   Mode = "norange"  // Range is answered with 200 and the whole
	Encoded   Mode = "encoded"  // bodies are gzipped, whatever the client accepts
	Redirect  Mode = "redirect" // blobs are redirected to RedirectTo
	OddRange  Mode = "oddrange" // Content-Range says other bytes than were asked for and are sent
	// HEAD of any digest is answered with 200, and GET with 500, or in repositories below Guessing with a guess
	Claims Mode = "claims"
	// an HTML page with 200 and the type of a manifest or a blob, its own length and the asked digest
	HTML      Mode = "html"
	Endless   Mode = "endless"   // bodies never end
	Bomb      Mode = "bomb"      // gzip of 1 GiB of zeros, as Content-Encoding
	BigHeader Mode = "bigheader" // 8 MiB of headers
	Stall     Mode = "stall"     // bodies stop in the middle and stay open
	Timeout   Mode = "timeout"   // every request is answered with 408
	Busy      Mode = "busy"      // every request is answered with 429 and Retry-After: 1000000
	Loop      Mode = "loop"      // every request is redirected to itself
	OddToken  Mode = "oddtoken"  // challenges name a token service that answers with Tokens' oddities
	HugeIndex Mode = "hugeindex" // manifests are JSON without end
)

// User and Password open private repositories.
const (
	User     = "reader"
	Password = "s3cret"
)

// Guessing is where a registry that Claims gives the two bytes with which any JSON begins as the whole of any digest.
const Guessing = "guess/"

// Claimed is the size that a registry which Claims names of everything.
const Claimed = 1000

// Client is the user agent of those whose traffic does not count: clients that fell back to the registry.
const Client = "fallback-client"

// Registry serves images from memory.
type Registry struct {
	// RedirectTo is where Redirect sends those who ask for blobs.
	RedirectTo string

	started  time.Time
	mode     atomic.Value // Mode
	turn     atomic.Int64
	requests atomic.Int64

	secret string // what its tokens are made of

	mu      sync.RWMutex
	images  map[string]*Image // by repository
	revoked map[string]bool   // repositories
	bytes   map[digest.Digest]int64
}

// New makes a good, empty registry.
func New() *Registry {
	r := &Registry{
		started: time.Now(), images: map[string]*Image{}, revoked: map[string]bool{}, bytes: map[digest.Digest]int64{},
		secret: rand.Text(),
	}
	r.SetMode(Good)
	return r
}

// SetMode says what is wrong from now on. Connections that are open stay so, and answers under way feel it.
func (r *Registry) SetMode(m Mode) { r.mode.Store(m) }

// Mode is what is wrong now.
func (r *Registry) Mode() Mode {
	m, _ := r.mode.Load().(Mode)
	return m
}

// Add serves an image, in the place of another of that repository.
func (r *Registry) Add(m *Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[m.Repository] = m
}

// Remove forgets an image.
func (r *Registry) Remove(repository string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.images[repository]; m != nil {
		for d := range m.content {
			delete(r.bytes, d)
		}
	}
	delete(r.images, repository)
	delete(r.revoked, repository)
}

// Revoke has it refuse, or not any more, whoever could read a repository before.
func (r *Registry) Revoke(repository string, revoked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked[repository] = revoked
}

// Sent is how many bytes of an image's blobs have been sent to mirrors, and how many requests there were in all.
func (r *Registry) Sent(m *Image) (total int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, b := range m.Blobs {
		total += r.bytes[b.Digest]
	}
	return total
}

// Requests is how many requests there were of mirrors.
func (r *Registry) Requests() int64 { return r.requests.Load() }

// Serve answers on a listener until it is closed.
func (r *Registry) Serve(l net.Listener) error {
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	if err := server.Serve(l); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// down reports whether nobody is to get an answer.
func (r *Registry) down() bool {
	m := r.Mode()
	return m == Down || m == Flap && int(time.Since(r.started)/time.Second)%2 == 0
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	mirror := q.Header.Get("User-Agent") != Client
	if mirror {
		r.requests.Add(1)
	}
	if r.Mode() == Late && !pause(q.Context(), time.Second) {
		return // who asked has gone
	}
	switch m := r.Mode(); {
	case r.down():
		reset(w)
	case m == Dead:
		for r.Mode() == Dead && pause(q.Context(), 50*time.Millisecond) {
		}
		reset(w) // a registry that lives again knows nothing of who had asked
	case m == Throttle && r.turn.Add(1)%2 == 0:
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS")
	case m == Busy:
		w.Header().Set("Retry-After", "1000000")
		refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS")
	case m == Timeout:
		refuse(w, http.StatusRequestTimeout, "UNKNOWN")
	case m == Errors && r.turn.Add(1)%2 == 0:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, "<html>"+strings.Repeat("the registry is out of order ", 100))
	case m == Loop:
		http.Redirect(w, q, q.URL.String(), http.StatusTemporaryRedirect)
	case m == BigHeader:
		for i := range 128 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 64<<10))
		}
		w.WriteHeader(http.StatusOK)
	default:
		r.answer(w, q, mirror)
	}
}

func (r *Registry) answer(w http.ResponseWriter, q *http.Request, mirror bool) {
	above, reference := path.Split(path.Clean(q.URL.Path))
	repository, collection := path.Split(strings.TrimSuffix(above, "/"))
	repository = strings.Trim(strings.TrimPrefix(repository, "/v2/"), "/")
	if r.Mode() == Claims {
		claim(w, q, reference)
		return
	}
	if r.Mode() == OddToken {
		r.oddToken(w, q)
		return
	}
	switch {
	case q.URL.Path == "/token":
		r.giveToken(w, q)
		return
	case q.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
		return
	case !slices.Contains([]string{"blobs", "manifests", "tags", "referrers"}, collection):
		refuse(w, http.StatusNotFound, "UNSUPPORTED")
		return
	}
	r.mu.RLock()
	m, revoked := r.images[repository], r.revoked[repository]
	r.mu.RUnlock()
	switch {
	case m == nil:
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN")
		return
	case revoked || m.Private && !r.accepts(q, m):
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		if m.Bearer {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(
				`Bearer realm="http://%s/token",service="images.test",scope="repository:%s:pull"`, q.Host, repository))
		}
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	case collection == "tags":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"name": repository, "tags": []string{Tag}})
		return
	case collection == "referrers":
		w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}})
		return
	}
	d := digest.Digest(reference)
	if collection == "manifests" && reference == Tag {
		d = m.Digest
	}
	content := m.Content(d)
	if content == nil || (collection == "manifests") != (d == m.Digest) {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	mediaType := "application/octet-stream"
	if d == m.Digest {
		mediaType = v1.MediaTypeImageManifest
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	r.send(w, q, d, content, d == m.Digest, mirror)
}

// accepts reports whether a request has what opens a private image.
func (r *Registry) accepts(q *http.Request, m *Image) bool {
	if m.Bearer {
		return q.Header.Get("Authorization") == "Bearer "+r.token(m.Repository)
	}
	user, password, _ := q.BasicAuth()
	return user == User && password == Password
}

// token is what opens a private repository whose image is a Bearer.
func (r *Registry) token(repository string) string {
	return digest.FromString(r.secret + repository).Encoded()
}

// giveToken gives whoever has the password a token for what is asked for, and all others one that opens nothing, as
// some registries do.
func (r *Registry) giveToken(w http.ResponseWriter, q *http.Request) {
	repository := strings.TrimSuffix(strings.TrimPrefix(q.URL.Query().Get("scope"), "repository:"), ":pull")
	user, password, _ := q.BasicAuth()
	token := digest.FromString("nothing").Encoded()
	if user == User && password == Password {
		token = r.token(repository)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 3600})
}

// send sends a blob or manifest in the way of the mode. Manifests are wrong where a mode is about their content.
func (r *Registry) send(w http.ResponseWriter, q *http.Request, d digest.Digest, content []byte, manifest,
	mirror bool) {
	body := &body{ResponseWriter: w, registry: r, context: q.Context()}
	if mirror {
		body.digest = d
	}
	switch r.Mode() {
	case WrongData:
		content = bytes.Clone(content)
		for i := len(content) / 2; i < len(content); i += 64 << 10 {
			content[i] ^= 0x55
		}
	case WrongSize:
		if r.turn.Add(1)%2 == 0 {
			content = content[:len(content)/2]
		} else {
			content = append(bytes.Clone(content), "and more"...)
		}
	case NoRange:
		q.Header.Del("Range")
		w.Header().Set("Accept-Ranges", "none")
	case Encoded:
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(content) // a buffer takes all
		_ = z.Close()
		content = packed.Bytes()
		q.Header.Del("Range")
		w.Header().Set("Content-Encoding", "gzip")
	case HTML:
		content = []byte("<html><body>Log in to the network to go on.</body></html>")
		q.Header.Del("Range")
	case Redirect:
		if !manifest && r.RedirectTo != "" {
			http.Redirect(w, q, r.RedirectTo+q.URL.Path, http.StatusTemporaryRedirect)
			return
		}
	case Reset:
		body.resetAt = -1
		if !manifest && r.turn.Add(1)%3 == 0 {
			body.resetAt = int64(len(content)) / 2
		}
	case Drip:
		if !manifest {
			body.rate = 256 << 10
		}
	case Trickle:
		if q.Method == http.MethodGet && !manifest && r.turn.Add(1)%3 == 1 {
			body.rate = 2 << 10
		}
	case Endless, HugeIndex:
		endless(w, q, manifest)
		return
	case Bomb:
		bomb(w, q)
		return
	case Stall:
		body.stallAt = max(1, int64(len(content))/2)
	case OddRange:
		if q.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(content)+6, len(content)+7))
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = body.Write(content) // the client may have gone
			return
		}
	}
	http.ServeContent(body, q, "", time.Time{}, bytes.NewReader(content))
}

// body counts what is sent of a blob, and spoils the sending.
type body struct {
	http.ResponseWriter
	registry         *Registry
	context          context.Context
	digest           digest.Digest // counted, where set
	sent             int64
	resetAt, stallAt int64
	rate             int // bytes per second; 0: as fast as can be
}

func (b *body) Write(p []byte) (int, error) {
	step := 32 << 10
	if b.rate > 0 {
		step = b.rate / 8
	}
	total := 0
	for len(p) > 0 {
		if b.registry.down() || b.resetAt > 0 && b.sent >= b.resetAt {
			reset(b.ResponseWriter)
			return total, net.ErrClosed
		}
		if b.registry.Mode() == Dead || b.stallAt > 0 && b.sent >= b.stallAt {
			// it may have been hijacked, and then there is nothing to flush
			_ = http.NewResponseController(b.ResponseWriter).Flush()
			for b.registry.Mode() == Dead || b.stallAt > 0 {
				if !pause(b.context, 50*time.Millisecond) {
					return total, b.context.Err()
				}
			}
		}
		if b.rate > 0 && !pause(b.context, time.Second/8) {
			return total, b.context.Err()
		}
		n, err := b.ResponseWriter.Write(p[:min(step, len(p))])
		b.count(n)
		total, p = total+n, p[n:]
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (b *body) count(n int) {
	b.sent += int64(n)
	if b.digest == "" {
		return
	}
	b.registry.mu.Lock()
	defer b.registry.mu.Unlock()
	b.registry.bytes[b.digest] += int64(n)
}

// pause reports whether the time passed before the context ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// claim has every digest, and gives none.
func claim(w http.ResponseWriter, q *http.Request, reference string) {
	if strings.HasPrefix(q.URL.Path, "/v2/"+Guessing) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, q, "", time.Time{}, strings.NewReader(`{"`))
		return
	}
	if q.Method != http.MethodHead {
		refuse(w, http.StatusInternalServerError, "UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
	if strings.Contains(reference, ":") {
		w.Header().Set("Docker-Content-Digest", reference)
	}
	w.Header().Set("Content-Length", strconv.Itoa(Claimed))
	w.WriteHeader(http.StatusOK)
}

// oddToken challenges for a token of its own, and the answers to that are no tokens.
func (r *Registry) oddToken(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path != "/token" {
		w.Header().Set("WWW-Authenticate",
			fmt.Sprintf(`Bearer realm="http://%s/token",service="s",scope="repository:x:pull"`, q.Host))
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	switch r.turn.Add(1) % 4 {
	case 0:
		_, _ = io.WriteString(w, `{"token":"`+strings.Repeat("t", 4<<20)+`"}`)
	case 1:
		_, _ = io.WriteString(w, `<html>no token</html>`)
	case 2:
		_, _ = io.WriteString(w, `{"token":"a\r\nX-Injected: 1","expires_in":-1}`)
	default:
		endless(w, q, false)
	}
}

// endless sends until the client has gone.
func endless(w http.ResponseWriter, q *http.Request, manifest bool) {
	piece := bytes.Repeat([]byte{'x'}, 32<<10)
	if manifest {
		_, _ = io.WriteString(w, `{"schemaVersion":2,"layers":[`)
		piece = bytes.Repeat([]byte(`{"size":1},`), 3000)
	}
	for q.Context().Err() == nil {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// bomb sends 1 MiB that unpacks to 1 GiB.
func bomb(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	w.WriteHeader(http.StatusOK)
	z, zeros := gzip.NewWriter(w), make([]byte, 1<<20)
	for range 1 << 10 {
		if _, err := z.Write(zeros); err != nil || q.Context().Err() != nil {
			return
		}
	}
	_ = z.Close() // the client may have gone
}

// reset ends the connection with a TCP reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // hijacked before
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // the connection may be gone
	}
	conn.Close()
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code}}})
}
