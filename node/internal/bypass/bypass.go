// Package bypass reports whether the node's container runtime pulls past the agent. Files may say that the runtime asks
// the agent first while it does not: it was started before they were written, another file undoes them, or it reads
// them in a way of its own. What counts is that an image came to the runtime and nobody asked the agent for it.
//
// Watch is a state machine without I/O: it is told of each request, and now and then which images the runtime has.
package bypass

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// startup is how long after the first look an image may still be one that was being pulled before it.
	startup = 3 * time.Minute
	// recent is how long before an image is there the runtime may have begun to pull it.
	recent = time.Hour
	// remembered bounds the repositories of which a request is remembered. Clients choose their names.
	remembered = 4096
	// longest is the length in bytes beyond which nothing is a repository: 255 each for the host and the name, and a
	// port.
	longest = 520
)

// Image is one that the runtime has pulled.
type Image struct {
	// Repository is the full name, such as docker.io/library/alpine.
	Repository string
	// Digest is the manifest's, or the index's.
	Digest string
}

// Watch compares what the runtime has with what the agent was asked for. The zero Watch is not usable.
type Watch struct {
	mirrored func(registry string) bool

	mu    sync.Mutex
	asked *lru.Cache[string, time.Time] // repositories, as paths of requests and their ns name them
	first time.Time                     // the first look
	seen  map[Image]bool
	past  []Image // came past the agent since it was last asked
}

// New returns a Watch of the images of those registries that mirrored tells.
func New(mirrored func(registry string) bool) *Watch {
	return &Watch{mirrored: mirrored, asked: lru.New[string, time.Time](remembered)}
}

// Handler notes what is asked for on its way to next.
func (w *Watch) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if repository := requested(r); repository != "" && len(repository) <= longest {
			w.Asked(repository, time.Now())
		}
		next.ServeHTTP(rw, r)
	})
}

// requested is the repository that a request is about, with the registry where it names one.
func requested(r *http.Request) string {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return ""
	}
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		if i := strings.LastIndex(rest, kind); i > 0 {
			if ns := r.URL.Query().Get("ns"); ns != "" {
				return ns + "/" + rest[:i]
			}
			return rest[:i]
		}
	}
	return ""
}

// Asked notes that somebody asked the agent for something in a repository. That is the runtime, as a rule, and so it
// has found its way.
func (w *Watch) Asked(repository string, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked.Add(repository, now)
	w.past = slices.DeleteFunc(w.past, func(i Image) bool {
		return registryOf(i.Repository) == registryOf(repository) || names(i.Repository, repository)
	})
}

// Look is told what images the runtime has. It returns those that came past the agent, until the agent is asked for
// something of the same registry.
func (w *Watch) Look(images []Image, now time.Time) []Image {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first.IsZero() {
		w.first = now
	}
	before := w.seen
	w.seen = make(map[Image]bool, len(images))
	for _, i := range images {
		if !before[i] && !w.seen[i] && now.Sub(w.first) > startup && w.mirrored(registryOf(i.Repository)) &&
			!w.wasAsked(i.Repository, now) {
			w.past = append(w.past, i)
		}
		w.seen[i] = true
	}
	w.past = slices.DeleteFunc(w.past, func(i Image) bool { return !w.seen[i] })
	return slices.Clone(w.past)
}

func (w *Watch) wasAsked(repository string, now time.Time) bool {
	for _, asked := range w.asked.Keys() {
		if names(repository, asked) {
			if at, _ := w.asked.Peek(asked); now.Sub(at) < recent {
				return true
			}
		}
	}
	return false
}

// names reports whether a request for asked, which may leave out the registry, is about the repository.
func names(repository, asked string) bool {
	return repository == asked || strings.HasSuffix(repository, "/"+asked)
}

func registryOf(repository string) string {
	registry, _, _ := strings.Cut(repository, "/")
	return registry
}
