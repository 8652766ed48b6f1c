package main

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// bodyWithin is how long the body of a request may take to come. No question to an agent has more than a few names in
// it, and most have none.
const bodyWithin = 5 * time.Second

// boundBodies answers requests whose bodies do not come. Otherwise net/http reads a body before it sends the answer,
// and waits for one that never comes for as long as the connection stays.
func boundBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close") // so that the answer does not wait for what nobody has read
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(bodyWithin))
		body := &body{ReadCloser: r.Body, conn: conn}
		r = r.WithContext(r.Context()) // net/http looks at its own body to know what is left of it
		r.Body = body
		next.ServeHTTP(w, r)
		if !body.ended {
			// After the answer it is read all the same, so that the client gets to see the answer.
			_ = conn.SetReadDeadline(time.Now().Add(bodyWithin))
		}
	})
}

// body takes the deadline away at its end, because from then on net/http reads to see whether the client is there.
type body struct {
	io.ReadCloser
	conn  *http.ResponseController
	ended bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && !b.ended {
		b.ended = true
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}
