package fetch

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// throttledFor is for how long, at least, upstream is asked in other names once it throttles one.
const throttledFor = time.Second

// maxAskers bounds the callers whose credentials a fetch keeps.
const maxAskers = 16

// asker is in whose name upstream is asked. A fetch asks again and again, and tokens live a minute or a few: the one
// that it began with may expire in its middle.
type asker struct {
	repo          content.Repository
	file          string // where upstream has the blob, if not where its API has it
	authorization string
	nobody        bool      // with a token that the registry gives to anyone, and with a new one when that expires
	accepted      bool      // upstream has given something
	refused       bool      // and gives nothing any more
	later         time.Time // upstream wishes not to be asked in this name before
}

// askers are those in whose name a fetch may ask. The fetch's lock guards them.
type askers struct {
	callers []*asker // the newest last
	nobody  *asker   // goes before them, once there was reason to try
	refusal error    // the last of a caller's credentials

	doubts   *doubts // for the rest see blame.go
	withheld bool    // upstream is kept from the participant
	seceded  bool    // the fetch has left the others
}

// admit takes in with whose credentials upstream may be asked. The newest are the ones least likely to have expired, so
// they are used first.
func (k *askers) admit(req content.Request) {
	a := &asker{repo: req.Repository, file: req.File, authorization: req.Authorization}
	if i := slices.IndexFunc(k.callers, func(b *asker) bool {
		return b.repo == a.repo && b.file == a.file && b.authorization == a.authorization
	}); i >= 0 {
		a = k.callers[i] // as it is: what was refused once in this fetch is not shown again
		k.callers = slices.Delete(k.callers, i, i+1)
	}
	k.callers = append(k.callers, a)
	if len(k.callers) > maxAskers {
		k.callers = slices.Delete(k.callers, 0, 1)
	}
}

// next is the one to ask who was not tried, nil where there is none. Whom upstream throttles is asked for after the
// others.
func (k *askers) next(tried ...*asker) (a *asker) {
	all := k.callers
	if k.nobody != nil {
		all = append(slices.Clip(all), k.nobody)
	}
	now := time.Now()
	for _, b := range slices.Backward(all) {
		switch {
		case b.refused || slices.Contains(tried, b):
		case !now.Before(b.later):
			return b
		case a == nil:
			a = b
		}
	}
	return a
}

// throttle notes that upstream throttles a, the last of those tried, and reports whether there is another to ask.
func (k *askers) throttle(tried []*asker, err error) bool {
	wish := throttledFor
	if up, ok := errors.AsType[*content.UpstreamError](err); ok {
		wish = max(wish, up.RetryAfter)
	}
	tried[len(tried)-1].later = time.Now().Add(wish)
	b := k.next(tried...)
	return b != nil && !time.Now().Before(b.later)
}

// refuse notes that upstream gives nothing to a. Where it gave something before, the token has expired, as a rule. Most
// images are there for anyone: whether this one is is asked once, and goes on without the callers' tokens if so.
func (k *askers) refuse(a *asker, err error) {
	a.refused = true
	if a.nobody {
		return
	}
	k.refusal = err
	if a.accepted && content.Denied(err) && k.nobody == nil {
		k.nobody = &asker{repo: a.repo, file: a.file, nobody: true}
	}
}

// only is the one who was given whatever came from upstream, nil where it may have been several.
func (k *askers) only() *asker {
	if len(k.callers) != 1 || k.nobody != nil || !k.callers[0].accepted {
		return nil
	}
	return k.callers[0]
}

// anew are the callers for another fetch, which refuses none of them yet. apart: it asks no peers.
func (k *askers) anew(apart bool) askers {
	another := askers{seceded: apart, doubts: k.doubts}
	for _, a := range k.callers {
		another.callers = append(another.callers,
			&asker{repo: a.repo, file: a.file, authorization: a.authorization, accepted: a.accepted})
	}
	return another
}

// outdated reports whether err is a refusal of callers beside whom another has come since.
func (k *askers) outdated(err error) bool { return refused(err) && k.next() != nil }

// refused reports whether err is upstream's no to one asker, which may be a yes to another.
func refused(err error) bool { return content.Denied(err) || errors.Is(err, content.ErrNotFound) }

// answer is upstream's.
type answer struct {
	*upstream.Body
	kind     content.Kind
	registry string
	// knew: that the registry ignores Range requests was known before it was asked.
	knew bool
}

// openError is that a registry did not answer, or not with content.
type openError struct {
	registry string
	err      error
}

func (e *openError) Error() string { return e.err.Error() }
func (e *openError) Unwrap() error { return e.err }

// open asks upstream for n bytes from off, as one asker after the other until it answers one of them. Each has one
// turn: a wish that ends while others are asked would have them asked in a circle. The error is the refusal of a
// caller's credentials, where it is one and nobody is only throttled: that caller can do something about it.
func (f *fetch) open(ctx context.Context, off, n int64) (*answer, error) {
	var tried []*asker
	var throttled error
	for {
		f.mu.Lock()
		a, req, refusal := f.askers.next(tried...), f.req, f.askers.refusal
		if f.cut.Size() >= 0 {
			req.Size = f.cut.Size()
		}
		f.mu.Unlock()
		if a == nil {
			return nil, cmp.Or(throttled, refusal, content.ErrNotFound)
		}
		tried = append(tried, a)
		req.Repository, req.File, req.Authorization = a.repo, a.file, a.authorization
		knew := f.fr.ignoresRange(a.repo.Registry)
		body, err := f.openAs(ctx, a, req, off, n)
		f.mu.Lock()
		another := refused(err) || a.nobody && !a.accepted // which is only a try, whatever comes of it
		switch {
		case err == nil:
			a.accepted = true
		case content.Throttled(err) && !another:
			throttled = &openError{a.repo.Registry, err}
			another = f.askers.throttle(tried, err)
		case another:
			f.askers.refuse(a, err)
			f.part.SetUpstream(f.askers.mayShare())
		}
		f.mu.Unlock()
		switch {
		case err == nil:
			f.fr.gave.Add(a.repo.Registry, time.Now())
			return &answer{body, req.Kind, a.repo.Registry, knew}, nil
		case !another:
			return nil, &openError{a.repo.Registry, err}
		}
	}
}

func (f *fetch) openAs(ctx context.Context, a *asker, req content.Request, off, n int64) (*upstream.Body, error) {
	if a.nobody && a.file == "" { // else it needs no token
		var err error
		if req.Authorization, err = f.fr.opts.Upstream.Authorize(ctx, a.repo, pullsecret.Credential{}); err != nil {
			return nil, err
		}
	}
	if req.Kind == content.Manifest { // which waits for its place in memory
		leaveTurn(ctx)
	}
	return f.fr.opts.Upstream.Open(ctx, req, off, n)
}
