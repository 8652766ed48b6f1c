package resolve

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/share"
)

const (
	// maxAnswer is how many bytes of a registry's answer are read: as many as agents take of a manifest. The library
	// takes 100 MiB, and several are read at one time.
	maxAnswer = 8 << 20
	// smallAnswer and smallElements are more than the manifest of an image has, in bytes and in commas. What is no
	// larger may be read for every pin at one time.
	smallAnswer, smallElements = 256 << 10, 4 << 10
	// largeReaders is how many artifacts may be resolved at one time that have larger answers. Namespaces share them,
	// for one may name registries that take their time.
	largeReaders = 4
)

// slots are those of artifacts that have large answers.
type slots struct {
	mu     sync.Mutex
	places *share.Places
	given  chan struct{} // is closed when one is given back
}

func newSlots() *slots { return &slots{places: share.New(largeReaders), given: make(chan struct{})} }

// take waits until a namespace may have a slot more.
func (s *slots) take(ctx context.Context, namespace string) error {
	for {
		s.mu.Lock()
		taken, given := s.places.Take(namespace), s.given
		s.mu.Unlock()
		if taken {
			return nil
		}
		select {
		case <-given:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *slots) give(namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places.Give(namespace)
	close(s.given)
	s.given = make(chan struct{})
}

// answers are those that one artifact is resolved by. It bounds what they take of memory: each one's length, how many
// elements it has, and how many artifacts have large ones at one time.
type answers struct {
	http.RoundTripper
	slots     *slots
	namespace string
	answered  func()      // is called at the first
	heard     atomic.Bool // whether there was any

	mu             sync.Mutex
	isLarge, holds bool // whether it needs no slot any more, and has one
}

// RoundTrip implements http.RoundTripper.
func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if !a.heard.Swap(true) {
		a.answered()
	}
	if r.Method != http.MethodHead {
		resp.Body = &boundedBody{ReadCloser: resp.Body, answers: a, request: r}
	}
	return resp, nil
}

// grow waits until the artifact may have a large answer. That lasts until all of its answers are done with.
func (a *answers) grow(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.isLarge {
		return nil
	}
	if err := a.slots.take(ctx, a.namespace); err != nil {
		return &Error{Reason: v1alpha1.ReasonResolving,
			Err: fmt.Errorf("its answer is large, and other large answers are still being read: %w", err)}
	}
	a.isLarge, a.holds = true, true
	return nil
}

// done lets another artifact have large answers. The library may still read one that it needs no more; that is not to
// wait for its turn, which nobody would end.
func (a *answers) done() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds {
		a.slots.give(a.namespace)
	}
	a.isLarge, a.holds = true, false
}

type boundedBody struct {
	io.ReadCloser
	answers       *answers
	request       *http.Request
	bytes, commas int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes += n
	b.commas += bytes.Count(p[:n], []byte(","))
	switch {
	case b.bytes > maxAnswer:
		return 0, b.tooMuch("is longer than %d bytes", maxAnswer)
	case b.commas > registries.MaxElements:
		return 0, b.tooMuch("has more than %d elements", registries.MaxElements)
	case b.bytes > smallAnswer || b.commas > smallElements:
		if err := b.answers.grow(b.request.Context()); err != nil {
			return 0, err
		}
	}
	return n, err
}

func (b *boundedBody) tooMuch(format string, limit int) error {
	return &Error{Reason: v1alpha1.ReasonInvalidManifest,
		Err: fmt.Errorf("the answer of %s "+format+", the most that is read of one", b.request.URL.Host, limit)}
}
