package origin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Manner is what is odd about the way in which a registry gives blobs.
type Manner string

// Manners.
const (
	Plain Manner = ""
	// ObjectStore lets 50 ms pass before the first byte, and gives each connection 2 MiB/s.
	ObjectStore Manner = "object-store"
	// NoRange answers a request for a range with 200 and the whole.
	NoRange Manner = "no-range"
	// Lying has a wrong byte in each MiB of a blob that it sends as a range for the first time. Sent once more, it is
	// right. An answer with the whole is right always, so who asks for no ranges meets no lie.
	Lying Manner = "lying"
)

const (
	firstByteAfter = 50 * time.Millisecond
	perConnection  = 2 << 20 // bytes a second
	pacedPiece     = 32 << 10
	// pacedCredit is how much of the time that a connection was not sent to may be made up for: as much as a busy
	// machine is late.
	pacedCredit = 50 * time.Millisecond
	lieEvery    = 1 << 20
)

// With is a server of blobs in a manner. What else is asked for it gives as ever.
func With(m Manner, server http.Handler) (http.Handler, error) {
	var odd func(http.ResponseWriter, *http.Request)
	switch m {
	case Plain:
		return server, nil
	case ObjectStore:
		odd = func(w http.ResponseWriter, r *http.Request) {
			if pause(r.Context(), firstByteAfter) {
				server.ServeHTTP(&paced{ResponseWriter: w, context: r.Context(), next: time.Now()}, r)
			}
		}
	case NoRange:
		odd = func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("Range")
			server.ServeHTTP(whole{w}, r)
		}
	case Lying:
		told := &lies{told: map[lie]bool{}}
		odd = func(w http.ResponseWriter, r *http.Request) {
			server.ServeHTTP(&liar{ResponseWriter: w, lies: told, blob: r.URL.Path}, r)
		}
	default:
		return nil, fmt.Errorf("no registry has the manner %q", m)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			odd(w, r)
			return
		}
		server.ServeHTTP(w, r)
	}), nil
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

// paced sends a body at the pace of one connection: HTTP/1.1 has one answer at a time on each. It writes small pieces,
// so that no more is in the kernel's buffers, and counted, than that.
type paced struct {
	http.ResponseWriter
	context context.Context // the request's
	next    time.Time       // when the next piece may go
}

func (p *paced) Write(b []byte) (total int, err error) {
	for len(b) > 0 {
		now := time.Now()
		if earliest := now.Add(-pacedCredit); p.next.Before(earliest) {
			p.next = earliest
		}
		if wait := p.next.Sub(now); wait > 0 && !pause(p.context, wait) {
			return total, context.Cause(p.context)
		}
		n, err := p.ResponseWriter.Write(b[:min(len(b), pacedPiece)])
		total, b = total+n, b[n:]
		if err != nil {
			return total, err
		}
		p.next = p.next.Add(time.Duration(n) * time.Second / perConnection)
	}
	return total, nil
}

// whole answers as a server that has never heard of ranges.
type whole struct{ http.ResponseWriter }

func (w whole) WriteHeader(status int) {
	w.Header().Del("Accept-Ranges")
	w.ResponseWriter.WriteHeader(status)
}

// ReadFrom leaves the sending to the kernel where it can.
func (w whole) ReadFrom(r io.Reader) (int64, error) { return io.Copy(w.ResponseWriter, r) }

// lie is the place of a wrong byte.
type lie struct {
	blob   string
	offset int64
}

// lies are those that were told.
type lies struct {
	mu   sync.Mutex
	told map[lie]bool
}

// tell reports whether a lie is still to be told, and notes that it is.
func (l *lies) tell(next lie) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.told[next]
	l.told[next] = true
	return !old
}

// liar sends one range of a blob, with the lies that were not told yet.
type liar struct {
	http.ResponseWriter
	lies *lies
	blob string
	// offset is that of the next byte in the blob.
	offset  int64
	partial bool
}

func (l *liar) WriteHeader(status int) {
	// A range that cannot be read here is one of several, for which nobody asks a registry.
	_, err := fmt.Sscanf(l.Header().Get("Content-Range"), "bytes %d-", &l.offset)
	l.partial = status == http.StatusPartialContent && err == nil
	l.ResponseWriter.WriteHeader(status)
}

func (l *liar) Write(b []byte) (int, error) {
	sent := b
	at := (l.offset + lieEvery - 1) / lieEvery * lieEvery
	for ; l.partial && at < l.offset+int64(len(b)); at += lieEvery {
		if l.lies.tell(lie{l.blob, at}) {
			if &sent[0] == &b[0] {
				sent = bytes.Clone(b) // a writer may not change what it is given
			}
			sent[at-l.offset] ^= 0xff
		}
	}
	n, err := l.ResponseWriter.Write(sent)
	l.offset += int64(n)
	return n, err
}
