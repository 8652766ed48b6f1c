package main

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// bodies is how long the body of a request may take to come.
type bodies struct {
	all   time.Duration // until its end, where that is not zero
	pause time.Duration // until the next of it
}

var (
	// questions have few bytes in them, and most have none.
	questions = bodies{all: 5 * time.Second, pause: 5 * time.Second}
	// uploads take as long as they do, as long as they go on. The hub takes them up at its own pace, and a client that
	// waits for it sends nothing.
	uploads = bodies{pause: 30 * time.Second}
)

// bound answers requests whose bodies do not come. Otherwise net/http reads a body before it sends the answer, and
// waits for one that never comes for as long as the connection stays.
func (b bodies) bound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close") // so that the answer does not wait for what nobody has read
		body := &body{ReadCloser: r.Body, bounds: b, conn: http.NewResponseController(w), began: time.Now()}
		body.await()
		r = r.WithContext(r.Context()) // net/http looks at its own body to know what is left of it
		r.Body = body
		next.ServeHTTP(w, r)
		if !body.ended {
			// After the answer it is read all the same, so that the client gets to see the answer.
			_ = body.conn.SetReadDeadline(time.Now().Add(questions.all))
		}
	})
}

// body takes the deadline away at its end, because from then on net/http reads to see whether the client is there.
type body struct {
	io.ReadCloser
	bounds bodies
	conn   *http.ResponseController
	began  time.Time
	ended  bool
}

// await sets the time by which the next of it has to come.
func (b *body) await() {
	by := time.Now().Add(b.bounds.pause)
	if end := b.began.Add(b.bounds.all); b.bounds.all > 0 && end.Before(by) {
		by = end
	}
	_ = b.conn.SetReadDeadline(by)
}

// Within sets the time until its end, for who wants a body that is no upload.
func (b *body) Within(all time.Duration) { b.bounds.all = all }

func (b *body) Read(p []byte) (int, error) {
	if !b.ended {
		b.await()
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && !b.ended {
		b.ended = true
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}
