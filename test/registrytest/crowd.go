package registrytest

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// thinks is how long a Crowd takes for each blob.
const thinks = 30 * time.Millisecond

// Crowd stands before a registry and counts the requests that are under way. One is until its last byte is about to go,
// so that who has read an answer and asks for the next is never counted twice.
type Crowd struct {
	inner http.Handler

	mu        sync.Mutex
	now, most int
	blobs     int // of those, for blobs by GET
	gather    int
	gathered  chan struct{}
}

// NewCrowd stands before inner. See Gather.
func NewCrowd(inner http.Handler, gather int) *Crowd {
	c := &Crowd{inner: inner}
	c.Gather(gather)
	return c
}

// Gather counts anew. From now on no blob is given before so many are asked for at one time.
func (c *Crowd) Gather(gather int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.most, c.gather, c.gathered = c.now, gather, make(chan struct{})
}

// Most is the most requests that were under way at one time.
func (c *Crowd) Most() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

func (c *Crowd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	blob := 0
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		blob = 1
	}
	gathered := c.enter(blob)
	leave := sync.OnceFunc(func() { c.leave(blob) })
	defer leave()
	if blob > 0 {
		select {
		case <-gathered:
		case <-r.Context().Done():
			return
		}
		select { // in which whoever nobody holds back comes too
		case <-time.After(thinks):
		case <-r.Context().Done():
			return
		}
	}
	c.inner.ServeHTTP(&leaving{ResponseWriter: w, leave: leave}, r)
}

func (c *Crowd) enter(blob int) (gathered chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now++
	c.most = max(c.most, c.now)
	if c.blobs += blob; c.blobs == c.gather {
		select {
		case <-c.gathered:
		default:
			close(c.gathered)
		}
	}
	return c.gathered
}

func (c *Crowd) leave(blob int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
	c.blobs -= blob
}

// leaving calls leave before the last byte of a body is written.
type leaving struct {
	http.ResponseWriter
	leave   func()
	written int
}

func (l *leaving) Write(p []byte) (int, error) {
	length, _ := strconv.Atoi(l.Header().Get("Content-Length")) // where it is not told, the body is a short one
	if l.written += len(p); l.written >= length {
		l.leave()
	}
	return l.ResponseWriter.Write(p)
}

func (l *leaving) Unwrap() http.ResponseWriter { return l.ResponseWriter }
