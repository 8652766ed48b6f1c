package hub

import (
	"net/http"
	"slices"
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
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if parts[0] == "api" && len(parts) > 3 && slices.Contains(kinds, parts[1]) {
		return []repo{{parts[1], parts[2]}, {parts[1], parts[2] + "/" + parts[3]}} // not all have an owner
	}
	id, pushed := strings.CutSuffix(strings.TrimPrefix(path, "/"), "/git-receive-pack")
	if !pushed {
		return nil
	}
	kind := "models"
	if slices.Contains(kinds[1:], parts[0]) {
		kind, id = parts[0], strings.TrimPrefix(id, parts[0]+"/")
	}
	return []repo{{kind, strings.TrimSuffix(id, ".git")}}
}

// sinceWrite is maxAge, or less where a caller has changed the repository since.
func (f *Front) sinceWrite(r repo, maxAge time.Duration) time.Duration {
	if at, ok := f.writes.last.Get(r.name()); ok {
		return min(maxAge, time.Since(at))
	}
	return maxAge
}
