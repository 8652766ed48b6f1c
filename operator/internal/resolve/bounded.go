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
)

const (
	// maxAnswer is how many bytes of a registry's answer are read: as many as agents take of a manifest. The library
	// takes 100 MiB, and several are read at one time.
	maxAnswer = 8 << 20
	// smallAnswer and smallElements are more than the manifest of an image has, in bytes and in commas. What is no
	// larger may be read for every pin at one time.
	smallAnswer, smallElements = 256 << 10, 4 << 10
	// largeReaders is how many artifacts may be resolved at one time that have larger answers, and namespaceReaders how
	// many of them of one namespace, which may name registries that take their time.
	largeReaders, namespaceReaders = 4, 2
)

// slots are those of artifacts that have large answers.
type slots struct {
	all chan struct{}
	own sync.Map // a chan struct{} for each namespace that ever had one
}

// of are the slots that an artifact of a namespace takes one of each.
func (s *slots) of(namespace string) []chan struct{} {
	own, _ := s.own.LoadOrStore(namespace, make(chan struct{}, namespaceReaders))
	return []chan struct{}{own.(chan struct{}), s.all}
}

// answers are those that one artifact is resolved by. It bounds what they take of memory: each one's length, how many
// elements it has, and how many artifacts have large ones at one time.
type answers struct {
	http.RoundTripper
	slots     *slots
	namespace string
	answered  func()      // is called at the first
	heard     atomic.Bool // whether there was any

	mu      sync.Mutex
	isLarge bool
	held    []chan struct{} // what holds something of the artifact
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
	for _, slots := range a.slots.of(a.namespace) {
		select {
		case slots <- struct{}{}:
			a.held = append(a.held, slots)
		case <-ctx.Done():
			return &Error{Reason: v1alpha1.ReasonResolving,
				Err: fmt.Errorf("its answer is large, and others that are have not been read yet: %w", ctx.Err())}
		}
	}
	a.isLarge = true
	return nil
}

// done lets another artifact have large answers. The library may still read one that it needs no more; that is not to
// wait for its turn, which nobody would end.
func (a *answers) done() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, slots := range a.held {
		<-slots
	}
	a.isLarge = true
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
