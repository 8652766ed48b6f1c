package hubtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// sign makes a URL of the CDN that holds for a while.
func (h *Hub) sign(repo *Repo, sha, p string) string {
	_, epoch := h.now()
	base := h.cdn.URL
	if h.SameHost {
		base = h.hub.URL
	}
	q := url.Values{
		"Expires": {strconv.FormatInt(time.Now().Add(h.URLLife).Unix(), 10)}, "Signature": {fmt.Sprint(epoch)},
	}
	return base + "/cdn/" + repo.kind + "/" + repo.id + "/" + sha + "/" + escape(p) + "?" + q.Encode()
}

// serveCDN gives large files to who has a URL that is signed.
func (h *Hub) serveCDN(rw http.ResponseWriter, r *http.Request) {
	w := &counted{ResponseWriter: rw, status: http.StatusOK}
	defer h.note(w, r, true)
	t, epoch := h.now()
	if t.Down {
		w.status = 0
		panic(http.ErrAbortHandler)
	}
	expires, err := strconv.ParseInt(r.URL.Query().Get("Expires"), 10, 64)
	if err != nil || time.Now().Unix() >= expires || r.URL.Query().Get("Signature") != fmt.Sprint(epoch) {
		http.Error(w, "AccessDenied", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodHead { // signed for GET
		http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/cdn/"), "/")
	for i := range parts {
		parts[i], _ = url.PathUnescape(parts[i])
	}
	repo, rest := h.find(parts[0], parts[1:])
	if repo == nil || len(rest) < 2 {
		http.Error(w, "NoSuchKey", http.StatusNotFound)
		return
	}
	_, files := repo.commit(rest[0])
	f := files[strings.Join(rest[1:], "/")]
	if f == nil {
		http.Error(w, "NoSuchKey", http.StatusNotFound)
		return
	}
	if r.Header.Get("Range") == "" && t.RangeOnly {
		http.Error(w, "too large to be cached", http.StatusBadRequest)
		return
	}
	if h.takeHang() {
		<-r.Context().Done()
		return
	}
	if t.Stall > 0 {
		select {
		case <-time.After(t.Stall):
		case <-r.Context().Done():
			return
		}
	}
	if t.NoRange {
		r.Header.Del("Range")
	}
	var body io.ReadSeeker = io.NewSectionReader(f.Data, 0, f.Data.Size())
	if t.Wrong {
		body = io.NewSectionReader(flipped{f.Data}, 0, f.Data.Size())
	}
	w.Header().Set("Etag", `"`+f.sha256[:32]+`"`) // of the storage, not of the file
	w.Header().Set("Content-Type", "application/octet-stream")
	if t.StopAfter > 0 || t.SlowAfter > 0 {
		w.ResponseWriter = &stopping{ResponseWriter: rw, hub: h, ctx: r.Context()}
	}
	if h.takeCut() {
		http.ServeContent(&cutting{ResponseWriter: w, left: t.CutAfter}, r, "", time.Time{}, body)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, body)
}

// takeHang reports whether this request is one of those that are left without an answer.
func (h *Hub) takeHang() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trouble.Hang == 0 {
		return false
	}
	h.trouble.Hang--
	return true
}

// takeCut reports whether this answer is one of those to be cut.
func (h *Hub) takeCut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trouble.CutAfter == 0 || h.trouble.Cuts == 0 {
		return false
	}
	h.trouble.Cuts--
	return true
}

// cutting ends a connection in the middle of an answer.
type cutting struct {
	http.ResponseWriter
	left int64
}

func (c *cutting) Write(p []byte) (int, error) {
	if int64(len(p)) >= c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= int64(len(p))
	return c.ResponseWriter.Write(p)
}

// stopping stands still when the CDN has given what it may.
type stopping struct {
	http.ResponseWriter
	hub  *Hub
	ctx  context.Context // of the request
	sent int64
}

func (s *stopping) Write(p []byte) (given int, err error) {
	for {
		n, err := s.ResponseWriter.Write(p[given : given+s.hub.allow(s.sent, len(p)-given)])
		s.sent += int64(n)
		if given += n; err != nil || given == len(p) {
			return given, err
		}
		if err := http.NewResponseController(s.ResponseWriter).Flush(); err != nil {
			return given, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-s.ctx.Done():
			return given, s.ctx.Err()
		}
	}
}

// allow takes n bytes, or as many as are left, of those after which the CDN stands still. sent: this answer has
// so many.
func (h *Hub) allow(sent int64, n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slow := h.trouble.SlowAfter; slow > 0 {
		n = int(min(int64(n), max(slow-sent, 0)))
	}
	if h.trouble.StopAfter == 0 {
		return n
	}
	n = int(min(int64(n), h.trouble.StopAfter-1)) // 0 would be no trouble
	h.trouble.StopAfter -= int64(n)
	return n
}

// flipped has one wrong byte in the middle.
type flipped struct{ Data }

func (f flipped) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.Data.ReadAt(p, off)
	if at := f.Size()/2 - off; at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	return n, err
}
