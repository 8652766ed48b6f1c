package hub

import (
	"net/http"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/node/internal/lru"
)

// maxWrites bounds the repositories of which it is known when they were last changed.
const maxWrites = 1024

// writes are when callers last changed which repository through this front. What was remembered before is then too old
// for them: who uploads a file meets it.
type writes struct{ last *lru.Cache[string, time.Time] }

// noteWrite remembers what an answer says that was changed.
func (f *Front) noteWrite(resp *http.Response) {
	if resp.StatusCode > 299 {
		return
	}
	for _, r := range changed(resp.Request.Method, f.pathAtHub(resp)) {
		f.writes.last.Add(r.name(), time.Now())
	}
}

// changed are the repositories that a request may change: by a question to /api/kind/org/name, or by git.
func changed(method, path string) []repo {
	if method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions {
		return nil
	}
	path, pushed := strings.CutSuffix(path, "/git-receive-pack")
	of := mentioned(path)
	switch {
	case pushed && len(of) > 0:
		return of[len(of)-1:]
	case strings.HasPrefix(path, "/api/") && len(of) == 2:
		return of // not all have an owner
	}
	return nil
}

// sinceWrite is maxAge, or less where a caller has changed the repository since.
func (f *Front) sinceWrite(r repo, maxAge time.Duration) time.Duration {
	if at, ok := f.writes.last.Get(r.name()); ok {
		return min(maxAge, time.Since(at))
	}
	return maxAge
}
