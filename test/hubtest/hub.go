package hubtest

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	// SlowAfter has each answer of the CDN stand still after so many bytes, if it is not 0, until the trouble is
	// another.
	SlowAfter int64
	// NoRange has the CDN answer with whole files.
	NoRange bool
	// RangeOnly has the CDN refuse what asks for a whole file, as it does above 50 GB.
	RangeOnly bool
	// Wrong flips a byte of each answer of the CDN that holds the middle of a file.
	Wrong bool
	// Stall makes the CDN wait before its first byte.
	Stall time.Duration
	// Hang has so many requests to the CDN be left without an answer.
	Hang int
	// NoHead has the hub answer HEAD with 405.
	NoHead bool
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
	odd      atomic.Pointer[Odd]
	mu       sync.Mutex
	repos    map[string]*Repo
	renamed  map[string]string // kind and id, by what they were
	tokens   map[string]bool   // that exist
	trouble  Trouble
	epoch    int // signed URLs of earlier ones are void
	answered int
	log      []Request
}

// New starts a hub on loopback. Close ends it.
func New() *Hub {
	h := empty()
	h.hub = httptest.NewServer(h.oddly(h.serveHub))
	h.cdn = httptest.NewServer(h.oddly(h.serveCDN))
	return h
}

// NewOn starts a hub on a listener, that of its CDN too. Close ends it.
func NewOn(l net.Listener) *Hub {
	h := empty()
	h.SameHost = true
	h.hub = httptest.NewUnstartedServer(h.oddly(h.serveHub))
	_ = h.hub.Listener.Close() // nobody has come to it
	h.hub.Listener = l
	h.hub.Start()
	h.cdn = h.hub
	return h
}

func empty() *Hub {
	return &Hub{PageSize: 1000, URLLife: time.Hour, repos: map[string]*Repo{}, renamed: map[string]string{},
		tokens: map[string]bool{}}
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
	case t.NoHead && r.Method == http.MethodHead:
		http.Error(w, "no HEAD here", http.StatusMethodNotAllowed)
		return
	case t.Status != 0:
		if t.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(t.RetryAfter))
			w.Header().Set("RateLimit", fmt.Sprintf(`"api";r=0;t=%d`, t.RetryAfter))
		}
		http.Error(w, "trouble", t.Status)
		return
	}
	h.mu.Lock()
	h.answered++
	w.Header().Set("X-Request-Id", fmt.Sprintf("Root=1-%d", h.answered))
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
	// The hub tells of its limits with every answer.
	w.Header().Set("RateLimit", `"resolvers";r=2998;t=172`)
	w.Header().Set("RateLimit-Policy", `"fixed window";"resolvers";q=3000;w=300`)
	if r.Header.Get("Authorization") == "" {
		w.Header().Set("X-HF-Warning", "unauthenticated; You are sending unauthenticated requests to the HF Hub.")
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	for i := range parts {
		parts[i], _ = url.PathUnescape(parts[i])
	}
	if to := h.newName(parts); to != "" {
		w.Header().Set("Location", to+strings.TrimSuffix("?"+r.URL.RawQuery, "?"))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	switch {
	case parts[0] == "api" && len(parts) > 1 && parts[1] == "whoami-v2":
		if r.Header.Get("Authorization") == "" {
			fail(w, http.StatusUnauthorized, "", "Invalid username or password.")
			return
		}
		reply(w, map[string]any{"name": "someone", "type": "user"})
	case r.URL.Path == "/api/agent-harnesses":
		reply(w, map[string]any{"standardEnvVars": []string{"AI_AGENT"}, "harnesses": map[string]any{}})
	case parts[0] == "api" && len(parts) > 5 && parts[1] == "resolve-cache":
		h.resolveCache(w, r, parts[2:])
	case parts[0] == "api" && len(parts) > 2:
		h.api(w, r, parts[1], parts[2:])
	default:
		h.resolve(w, r, parts)
	}
}

// newName is the path that parts have now, where they name a repository by what it was.
func (h *Hub) newName(parts []string) string {
	at, kind := 0, "models"
	switch {
	case parts[0] == "api":
		if len(parts) < 3 {
			return ""
		}
		at, kind = 2, parts[1]
	case slices.Contains([]string{"datasets", "spaces"}, parts[0]):
		at, kind = 1, parts[0]
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := min(2, len(parts)-at); n > 0; n-- {
		if to := h.renamed[kind+"/"+strings.Join(parts[at:at+n], "/")]; to != "" {
			all := append(slices.Clone(parts[:at]), strings.Split(to, "/")...)
			for _, p := range parts[at+n:] {
				all = append(all, url.PathEscape(p))
			}
			return "/" + strings.Join(all, "/")
		}
	}
	return ""
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
		refs := map[string]any{"branches": branches, "tags": []any{}, "converts": []any{}}
		if r.URL.Query().Get("include_prs") != "" {
			refs["pullRequests"] = []any{}
		}
		reply(w, refs)
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
	case rest[0] == "preupload" || rest[0] == "commit":
		repo.write(w, r, rest[0], rest[1])
	case rest[0] == "xet-read-token" || rest[0] == "xet-write-token":
		w.Header().Set("X-Xet-Cas-Url", h.URL()+"/cas") // older clients read these, newer ones the body
		w.Header().Set("X-Xet-Access-Token", "xet")
		w.Header().Set("X-Xet-Token-Expiration", strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10))
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
		if below && (truth(q.Get("recursive")) || !strings.Contains(rest, "/")) {
			list = append(list, e)
		}
	}
	if folder != "" && list == nil {
		fail(w, http.StatusNotFound, "EntryNotFound", folder+" does not exist")
		return
	}
	first, _ := strconv.Atoi(q.Get("cursor"))
	size := h.PageSize
	if truth(q.Get("expand")) {
		size = min(size, expandedPage)
		list = expanded(list)
	}
	last := min(first+size, len(list))
	if last < len(list) {
		q.Set("cursor", strconv.Itoa(last))
		w.Header().Set("Link", "<"+h.URL()+r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
	}
	reply(w, append([]map[string]any{}, list[first:last]...))
}

func (h *Hub) pathsInfo(w http.ResponseWriter, r *http.Request, files map[string]*file) {
	var paths []string
	var expand bool
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		var q struct {
			Paths  []string `json:"paths"`
			Expand bool     `json:"expand"`
		}
		_ = json.NewDecoder(r.Body).Decode(&q) // then there are none
		paths, expand = q.Paths, q.Expand
	} else if r.ParseForm() == nil {
		paths, expand = r.PostForm["paths"], truth(r.PostForm.Get("expand"))
	}
	out := []map[string]any{}
	for _, e := range tree(files) {
		if slices.Contains(paths, e["path"].(string)) {
			out = append(out, e)
		}
	}
	if expand {
		out = expanded(out)
	}
	reply(w, out)
}

// expandedPage is how many entries a page has at most that tells more of each.
const expandedPage = 50

// truth reads a boolean as the clients write it.
func truth(s string) bool { return slices.Contains([]string{"true", "1"}, strings.ToLower(s)) }

// expanded tells of each entry what takes the hub longer to say.
func expanded(list []map[string]any) []map[string]any {
	for _, e := range list {
		e["lastCommit"] = map[string]any{"id": strings.Repeat("0", 40), "title": "made",
			"date": "2026-01-01T00:00:00.000Z"}
		if e["type"] == "file" {
			e["securityFileStatus"] = map[string]any{"status": "safe", "avScan": map[string]any{"status": "safe"},
				"pickleImportScan": nil}
		}
	}
	return list
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
		to += "?" + url.Values{r.URL.Path: {""}, "etag": {`"` + f.oid + `"`}}.Encode()
		w.Header().Set("X-Linked-Etag", `"`+f.oid+`"`)
		w.Header().Set("X-Linked-Size", strconv.FormatInt(f.Data.Size(), 10))
		w.Header().Set("Location", to)
		w.Header().Set("Content-Length", strconv.Itoa(len(to))) // of the text, as with each redirect of the hub's
		w.WriteHeader(http.StatusTemporaryRedirect)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, to) // the caller has gone, if it fails
		}
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
