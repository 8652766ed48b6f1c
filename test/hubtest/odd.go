package hubtest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Odd changes what a hub and its CDN answer: it answers itself, or has next do that.
type Odd func(w http.ResponseWriter, r *http.Request, next http.Handler)

// SetOdd makes the hub and its CDN odd from now on; nil: as they are.
func (h *Hub) SetOdd(o Odd) { h.odd.Store(&o) }

// oddly serves by what SetOdd said.
func (h *Hub) oddly(plain http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if o := h.odd.Load(); o != nil && *o != nil {
			(*o)(w, r, plain)
			return
		}
		plain(w, r)
	}
}

// rewritten has next answer, and gives that on as change has it.
func rewritten(w http.ResponseWriter, r *http.Request, next http.Handler, change func(a *httptest.ResponseRecorder)) {
	a := httptest.NewRecorder()
	next.ServeHTTP(a, r)
	change(a)
	maps.Copy(w.Header(), a.Header())
	w.WriteHeader(a.Code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.Body.Bytes()) // the caller has gone, if it fails
	}
}

func isTree(r *http.Request) bool { return strings.Contains(r.URL.Path, "/tree/") }

func isCDN(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/cdn/") }

func isFile(r *http.Request) bool { return strings.Contains(r.URL.Path, "/resolve/") }

// OddPages has a listing name as its next page what page makes of the number of the page that is asked for.
func OddPages(page func(n int) string) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !isTree(r) {
			next.ServeHTTP(w, r)
			return
		}
		n, _ := strconv.Atoi(r.URL.Query().Get("page"))
		rewritten(w, r, next, func(a *httptest.ResponseRecorder) {
			if to := page(n); to != "" {
				q := r.URL.Query()
				q.Set("page", to)
				a.Header().Set("Link", "<http://"+r.Host+r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
			}
			if n > 0 { // what is new of each
				a.Body = bytes.NewBufferString(`[{"type":"file","oid":"` + strings.Repeat("0", 40) +
					`","size":1,"path":"page-` + strconv.Itoa(n) + `"}]`)
			}
			a.Header().Set("Content-Length", strconv.Itoa(a.Body.Len()))
		})
	}
}

// OddNext has a listing name its next page by what next makes of its path and query.
func OddNext(next func(path string) string) Odd {
	return func(w http.ResponseWriter, r *http.Request, plain http.Handler) {
		rewritten(w, r, plain, func(a *httptest.ResponseRecorder) {
			own, _, more := strings.Cut(strings.TrimPrefix(a.Header().Get("Link"), "<http://"+r.Host), ">")
			if more && isTree(r) {
				a.Header().Set("Link", "<"+next(own)+`>; rel="next"`)
			}
		})
	}
}

// OddGzip packs answers that nobody wants packed: of the CDN, or of the hub itself.
func OddGzip(cdn bool) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isCDN(r) != cdn {
			next.ServeHTTP(w, r)
			return
		}
		rewritten(w, r, next, func(a *httptest.ResponseRecorder) {
			if a.Code >= http.StatusMultipleChoices {
				return
			}
			var packed bytes.Buffer
			z := gzip.NewWriter(&packed)
			_, _ = z.Write(a.Body.Bytes()) // into memory
			_ = z.Close()
			a.Body = &packed
			a.Header().Set("Content-Encoding", "gzip")
			a.Header().Set("Content-Length", strconv.Itoa(packed.Len()))
		})
	}
}

// OddSizes has every Content-Range say of no size, and the hub refuse HEAD where noHead is set.
func OddSizes(noHead bool) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if noHead && !isCDN(r) && r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		rewritten(w, r, next, func(a *httptest.ResponseRecorder) {
			if span, _, ok := strings.Cut(a.Header().Get("Content-Range"), "/"); ok {
				a.Header().Set("Content-Range", span+"/*")
			}
		})
	}
}

// OddThrottle answers every question to the hub with 429 and a Retry-After.
func OddThrottle(retryAfter func() string) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isCDN(r) {
			next.ServeHTTP(w, r)
			return
		}
		rewritten(w, r, next, func(a *httptest.ResponseRecorder) {
			*a = *httptest.NewRecorder()
			a.Code = http.StatusTooManyRequests
			a.Header().Set("Retry-After", retryAfter())
		})
	}
}

// InAnHour is a date for Retry-After.
func InAnHour() string { return time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) }

// OddETags has the hub spell its ETags otherwise.
func OddETags(spell func(etag string) string) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rewritten(w, r, next, func(a *httptest.ResponseRecorder) {
			for _, name := range []string{"Etag", "X-Linked-Etag"} {
				if etag := a.Header().Get(name); etag != "" {
					a.Header().Set(name, spell(strings.Trim(etag, `"`)))
				}
			}
		})
	}
}

// OddEntries changes what the listing says of each path.
func OddEntries(change func(entry map[string]any)) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !isTree(r) {
			next.ServeHTTP(w, r)
			return
		}
		rewritten(w, r, next, func(a *httptest.ResponseRecorder) {
			var entries []map[string]any
			if json.Unmarshal(a.Body.Bytes(), &entries) != nil {
				return // it is a refusal
			}
			for _, e := range entries {
				change(e)
			}
			a.Body.Reset()
			_ = json.NewEncoder(a.Body).Encode(entries) // it came as JSON
			a.Header().Set("Content-Length", strconv.Itoa(a.Body.Len()))
		})
	}
}

// OddHops has the CDN redirect so many times before it gives a file; 0: without end. Each second one leads to the hub.
func OddHops(h *Hub, hops int) Odd {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		q := r.URL.Query()
		n, _ := strconv.Atoi(q.Get("hop"))
		if !isCDN(r) || hops > 0 && n >= hops {
			next.ServeHTTP(w, r)
			return
		}
		q.Set("hop", strconv.Itoa(n+1))
		base := h.cdn.URL
		if n%2 == 0 {
			base = h.hub.URL
		}
		to, err := url.Parse(base + r.URL.EscapedPath() + "?" + q.Encode())
		if err != nil {
			panic(err) // both are URLs of this package
		}
		http.Redirect(w, r, to.String(), http.StatusFound)
	}
}

// OddToken has the hub know a token no more once it has led so many times to a file.
func OddToken(times int64) Odd {
	var led atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !isCDN(r) && isFile(r) && led.Add(1) > times {
			w.Header().Set("X-Error-Message", "Invalid credentials in Authorization header")
			http.Error(w, `{"error":"expired"}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
}
