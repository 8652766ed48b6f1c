package hubtest

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Request is one that the hub or its CDN was asked.
type Request struct {
	CDN           bool
	Method        string
	Path          string // escaped, with the query
	Authorization string
	Range         string
	Status        int
	Sent          int64 // bytes of the body
}

// Trouble is what is wrong with the hub. The zero value is nothing.
type Trouble struct {
	// Down cuts each connection to hub and CDN without an answer.
	Down bool
	// Status answers every question to the hub with it, if it is not 0. RetryAfter comes with it.
	Status     int
	RetryAfter int
	// Expired makes each signed URL that was given until now void.
	Expired bool
	// CutAfter cuts an answer of the CDN after so many bytes, if it is not 0; Cuts is how often.
	CutAfter int64
	Cuts     int
	// StopAfter has the CDN stand still after so many bytes in all, if it is not 0, until the trouble is another.
	StopAfter int64
	// NoRange has the CDN answer with whole files.
	NoRange bool
	// RangeOnly has the CDN refuse what asks for a whole file, as it does above 50 GB.
	RangeOnly bool
	// Wrong flips a byte of each answer of the CDN that holds the middle of a file.
	Wrong bool
	// Stall makes the CDN wait before its first byte.
	Stall time.Duration
	// NoTree has the hub know no listings, as mirrors do.
	NoTree bool
}

// Hub is a hub and its CDN.
type Hub struct {
	// PageSize is how many entries a page of a tree has; 1000.
	PageSize int
	// URLLife is for how long a signed URL holds; an hour.
	URLLife time.Duration
	// Redirect has the CDN be the hub's own host.
	SameHost bool

	hub, cdn *httptest.Server
	mu       sync.Mutex
	repos    map[string]*Repo
	tokens   map[string]bool // that exist
	trouble  Trouble
	epoch    int // signed URLs of earlier ones are void
	log      []Request
}

// New starts a hub on loopback. Close ends it.
func New() *Hub {
	h := &Hub{PageSize: 1000, URLLife: time.Hour, repos: map[string]*Repo{}, tokens: map[string]bool{}}
	h.hub = httptest.NewServer(http.HandlerFunc(h.serveHub))
	h.cdn = httptest.NewServer(http.HandlerFunc(h.serveCDN))
	return h
}

// Close stops the servers.
func (h *Hub) Close() {
	h.hub.CloseClientConnections()
	h.cdn.CloseClientConnections()
	h.hub.Close()
	h.cdn.Close()
}

// URL is the hub's base URL.
func (h *Hub) URL() string { return h.hub.URL }

// Repo makes an empty repository. kind is "models", "datasets" or "spaces".
func (h *Hub) Repo(kind, id string) *Repo {
	r := &Repo{hub: h, kind: kind, id: id, commits: map[string]map[string]*file{}, branches: map[string]string{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repos[kind+"/"+id] = r
	return r
}

// Token makes a token that exists but opens nothing by itself.
func (h *Hub) Token(token string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tokens["Bearer "+token] = true
}

// Set replaces what is wrong with the hub.
func (h *Hub) Set(t Trouble) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trouble = t
	if t.Expired {
		h.epoch++
	}
}

// Requests are all that were asked since Forget, or the start.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.log)
}

// Forget forgets the requests so far.
func (h *Hub) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = nil
}

// Count is how many requests the hub itself was asked, and how many bytes of large files the CDN has sent.
func (h *Hub) Count() (requests int, bytes int64) {
	for _, r := range h.Requests() {
		if r.CDN {
			bytes += r.Sent
		} else {
			requests++
		}
	}
	return requests, bytes
}

func (h *Hub) now() (Trouble, int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trouble, h.epoch
}

// counted notes what is sent.
type counted struct {
	http.ResponseWriter
	status int
	sent   int64
}

func (c *counted) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent += int64(n)
	return n, err
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (h *Hub) note(w *counted, r *http.Request, cdn bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, Request{
		CDN: cdn, Method: r.Method, Path: r.URL.RequestURI(), Authorization: r.Header.Get("Authorization"),
		Range:  r.Header.Get("Range"),
		Status: w.status, Sent: w.sent,
	})
}

func (h *Hub) serveHub(rw http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/cdn/") {
		h.serveCDN(rw, r)
		return
	}
	w := &counted{ResponseWriter: rw, status: http.StatusOK}
	defer h.note(w, r, false)
	t, _ := h.now()
	switch {
	case t.Down:
		w.status = 0
		panic(http.ErrAbortHandler)
	case t.Status != 0:
		if t.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(t.RetryAfter))
			w.Header().Set("RateLimit", fmt.Sprintf(`"api";r=0;t=%d`, t.RetryAfter))
		}
		http.Error(w, "trouble", t.Status)
		return
	}
	h.mu.Lock()
	known := h.tokens[r.Header.Get("Authorization")]
	for _, repo := range h.repos {
		known = known || repo.readers[r.Header.Get("Authorization")]
	}
	h.mu.Unlock()
	if r.Header.Get("Authorization") != "" && !known {
		w.Header().Set("X-Error-Message", "Invalid credentials in Authorization header")
		http.Error(w, `{"error":"Invalid credentials in Authorization header"}`, http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	for i := range parts {
		parts[i], _ = url.PathUnescape(parts[i])
	}
	switch {
	case parts[0] == "api" && len(parts) > 1 && parts[1] == "whoami-v2":
		if r.Header.Get("Authorization") == "" {
			fail(w, http.StatusUnauthorized, "", "Invalid username or password.")
			return
		}
		reply(w, map[string]any{"name": "someone", "type": "user"})
	case parts[0] == "api" && len(parts) > 5 && parts[1] == "resolve-cache":
		h.resolveCache(w, r, parts[2:])
	case parts[0] == "api" && len(parts) > 2:
		h.api(w, r, parts[1], parts[2:])
	default:
		h.resolve(w, r, parts)
	}
}

// find is the repository at the head of parts, and what is behind it.
func (h *Hub) find(kind string, parts []string) (*Repo, []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := min(2, len(parts)); n > 0; n-- {
		if r := h.repos[kind+"/"+strings.Join(parts[:n], "/")]; r != nil {
			return r, parts[n:]
		}
	}
	return nil, nil
}

// may reports whether the caller may read, and answers where not.
func (r *Repo) may(w http.ResponseWriter, req *http.Request, files bool) bool {
	auth := req.Header.Get("Authorization")
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
	}
	switch {
	case r == nil || r.private && !r.readers[auth]:
		status := http.StatusNotFound
		if auth == "" {
			status = http.StatusUnauthorized
		}
		fail(w, status, "RepoNotFound", "Repository not found")
		return false
	case files && r.gated && !r.readers[auth]:
		status := http.StatusForbidden
		if auth == "" {
			status = http.StatusUnauthorized
		}
		fail(w, status, "GatedRepo", "Access to this repository is restricted")
		return false
	}
	return true
}

func fail(w http.ResponseWriter, status int, code, message string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	w.Header().Set("X-Error-Message", message)
	http.Error(w, message, status)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(v) // the caller has gone, if it fails
}

func (h *Hub) api(w http.ResponseWriter, r *http.Request, kind string, parts []string) {
	t, _ := h.now()
	repo, rest := h.find(kind, parts)
	if !repo.may(w, r, false) {
		return
	}
	if len(rest) == 0 {
		rest = []string{"revision", "main"}
	}
	if rest[0] == "refs" {
		repo.mu.Lock()
		defer repo.mu.Unlock()
		branches := []map[string]any{}
		for _, b := range slices.Sorted(maps.Keys(repo.branches)) {
			branches = append(branches, map[string]any{"name": b, "ref": "refs/heads/" + b,
				"targetCommit": repo.branches[b]})
		}
		reply(w, map[string]any{"branches": branches, "tags": []any{}, "converts": []any{}})
		return
	}
	if len(rest) < 2 {
		fail(w, http.StatusNotFound, "", "Not found")
		return
	}
	sha, files := repo.commit(rest[1])
	if files == nil {
		fail(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+rest[1])
		return
	}
	switch {
	case rest[0] == "revision":
		h.info(w, r, repo, sha, files)
	case rest[0] == "tree" && !t.NoTree:
		h.tree(w, r, files, strings.Join(rest[2:], "/"))
	case rest[0] == "paths-info" && !t.NoTree:
		h.pathsInfo(w, r, files)
	case rest[0] == "xet-read-token":
		reply(w, map[string]any{"casUrl": h.URL() + "/cas", "exp": time.Now().Add(time.Hour).Unix(),
			"accessToken": "xet"})
	default:
		fail(w, http.StatusNotFound, "", "Not found")
	}
}

func (h *Hub) info(w http.ResponseWriter, r *http.Request, repo *Repo, sha string, files map[string]*file) {
	siblings := []map[string]any{}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		s := map[string]any{"rfilename": p}
		if r.URL.Query().Get("blobs") != "" {
			f := files[p]
			s["size"], s["blobId"] = f.Data.Size(), f.oid
			if f.LFS {
				s["lfs"] = map[string]any{"sha256": f.sha256, "size": f.Data.Size(), "pointerSize": 135}
			}
		}
		siblings = append(siblings, s)
	}
	var gated any = false
	if repo.gated {
		gated = "auto"
	}
	reply(w, map[string]any{
		"_id": "1", "id": repo.id, "modelId": repo.id, "sha": sha, "private": repo.private, "gated": gated,
		"disabled":  false,
		"downloads": 1, "likes": 0, "tags": []string{}, "lastModified": "2026-01-01T00:00:00.000Z",
		"siblings": siblings,
	})
}

func (h *Hub) tree(w http.ResponseWriter, r *http.Request, files map[string]*file, folder string) {
	q := r.URL.Query()
	var list []map[string]any
	for _, e := range tree(files) {
		rest, below := strings.CutPrefix(e["path"].(string), strings.TrimSuffix(folder+"/", "/"))
		if folder != "" {
			rest, below = strings.CutPrefix(e["path"].(string), folder+"/")
		}
		if below && (q.Get("recursive") == "true" || !strings.Contains(rest, "/")) {
			list = append(list, e)
		}
	}
	if folder != "" && list == nil {
		fail(w, http.StatusNotFound, "EntryNotFound", folder+" does not exist")
		return
	}
	first, _ := strconv.Atoi(q.Get("cursor"))
	last := min(first+h.PageSize, len(list))
	if last < len(list) {
		q.Set("cursor", strconv.Itoa(last))
		w.Header().Set("Link", "<"+h.URL()+r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
	}
	reply(w, append([]map[string]any{}, list[first:last]...))
}

func (h *Hub) pathsInfo(w http.ResponseWriter, r *http.Request, files map[string]*file) {
	var paths []string
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		var q struct {
			Paths []string `json:"paths"`
		}
		_ = json.NewDecoder(r.Body).Decode(&q) // then there are none
		paths = q.Paths
	} else if r.ParseForm() == nil {
		paths = r.PostForm["paths"]
	}
	out := []map[string]any{}
	for _, e := range tree(files) {
		if slices.Contains(paths, e["path"].(string)) {
			out = append(out, e)
		}
	}
	reply(w, out)
}

// resolve answers for a file.
func (h *Hub) resolve(w http.ResponseWriter, r *http.Request, parts []string) {
	kind := "models"
	if slices.Contains([]string{"datasets", "spaces"}, parts[0]) {
		kind, parts = parts[0], parts[1:]
	}
	repo, rest := h.find(kind, parts)
	if !repo.may(w, r, true) {
		return
	}
	if len(rest) < 3 || rest[0] != "resolve" {
		fail(w, http.StatusNotFound, "", "Not found")
		return
	}
	sha, files := repo.commit(rest[1])
	if files == nil {
		fail(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+rest[1])
		return
	}
	w.Header().Set("X-Repo-Commit", sha)
	p := strings.Join(rest[2:], "/")
	f := files[p]
	if f == nil {
		fail(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	if !f.LFS {
		to := "/api/resolve-cache/" + kind + "/" + repo.id + "/" + sha + "/" + escape(p)
		w.Header().Set("Location", to+"?"+url.Values{"etag": {`"` + f.oid + `"`}}.Encode())
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("X-Linked-Etag", `"`+f.sha256+`"`)
	w.Header().Set("X-Linked-Size", strconv.FormatInt(f.Data.Size(), 10))
	w.Header().Set("X-Xet-Hash", xetHash(f))
	api := h.URL() + "/api/" + kind + "/" + repo.id + "/xet-read-token/" + sha
	w.Header().Set("Link", "<"+api+`>; rel="xet-auth", <`+h.URL()+"/cas/"+xetHash(f)+`>; rel="xet-reconstruction-info"`)
	if strings.Contains(r.Header.Get("Accept"), "application/vnd.xet-fileinfo+json") {
		w.Header().Set("Content-Type", "application/vnd.xet-fileinfo+json")
		_, _ = w.Write([]byte("{}")) // the caller has gone, if it fails
		return
	}
	http.Redirect(w, r, h.sign(repo, sha, p), http.StatusFound)
}

func escape(p string) string {
	parts := strings.Split(p, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// resolveCache gives a small file: kind/org/name/sha/path.
func (h *Hub) resolveCache(w http.ResponseWriter, r *http.Request, parts []string) {
	repo, rest := h.find(parts[0], parts[1:])
	if !repo.may(w, r, true) {
		return
	}
	sha, files := repo.commit(rest[0])
	f := files[strings.Join(rest[1:], "/")]
	if f == nil {
		fail(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	w.Header().Set("X-Repo-Commit", sha)
	w.Header().Set("Etag", `"`+f.oid+`"`)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	body := io.NewSectionReader(f.Data, 0, f.Data.Size())
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && r.Method == http.MethodGet {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.Copy(z, body) // the caller has gone, if it fails
		_ = z.Close()
		return
	}
	http.ServeContent(w, r, path.Base(r.URL.Path), time.Time{}, body)
}
