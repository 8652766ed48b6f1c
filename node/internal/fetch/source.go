package fetch

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// Sources knows which repositories have proved that they have some content. Nobody else's bytes are given in the name
// of one that has not: it may be anyone's, and only claim to have the content.
type Sources interface {
	// Proved reports whether the repository has proved to have the content.
	Proved(req content.Request) bool
	// Doubted reports whether the repository's yes to the caller of a request may be about anything, not the content.
	Doubted(req content.Request) bool
	// Prove notes that it has: all of the content came from it, and matched its digest.
	Prove(req content.Request)
}

// everyone is the Sources of a node on which each may be given what any other has.
type everyone struct{}

func (everyone) Proved(content.Request) bool  { return true }
func (everyone) Doubted(content.Request) bool { return false }
func (everyone) Prove(content.Request)        {}

// errForeign is that a fetch which runs for another source has the digest. It says nothing of whether the blob can be
// had.
var errForeign = errors.New("it is being fetched from another source")

// foreignError is errForeign, with the fetch.
type foreignError struct{ f *fetch }

func (e *foreignError) Error() string { return fmt.Sprintf("%s: %v", e.f.digest, errForeign) }
func (e *foreignError) Unwrap() error { return errForeign }

// wait returns when the fetch has ended.
func (e *foreignError) wait(ctx context.Context) error {
	select {
	case <-e.f.released:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// proved notes that the source of a fetch has given the whole, and to whom.
func (f *fetch) proved(req content.Request) {
	f.fr.opts.Sources.Prove(req)
	f.mu.Lock()
	given, some := f.askers.only(), f.tally.fromUpstream > 0
	f.mu.Unlock()
	if given != nil && some {
		req.Repository, req.Authorization = given.repo, given.authorization
		f.fr.opts.Gave(req)
	}
}

const (
	// mayStandStill is for how long a fetch that brings nothing keeps other sources from bringing the blob. lookAgain
	// is how often a source that does not answer is asked whether it would.
	mayStandStill, lookAgain = 3 * time.Second, time.Second
	// mayBeSampled is for how long others wait for a sample to be taken of what peers bring.
	mayBeSampled = mayStandStill / 2
)

// gaveWay reports whether err is that of a fetch which was waited for and has given way to another source. None of
// those who waited is kept out by that other for now, and they go on together.
func gaveWay(err error) bool {
	_, runs := errors.AsType[*foreignError](err)
	return !runs && errors.Is(err, errForeign)
}

// giveWay waits until a fetch of another source may serve a request, has ended, or may be ended for its sake: one that
// nobody wants, or that stands still while the request's source brings something. Then it returns the one in its place;
// whoever read it is given the rest by his own source, see lasting. It fails with errForeign where the fetch goes on.
// One that is to show what peers hold is soon over, and the sample that is taken of it may be the proof that the
// request's source needs.
func (f *fetch) giveWay(ctx context.Context, req content.Request, keep bool) (next *fetch, err error) {
	var looked, seen time.Time // at what the source gives, and since when bytes come to the fetch
	tick := time.NewTicker(mayStandStill / 30)
	defer tick.Stop()
	for !f.fr.serves(f, req) && f.ended() == nil {
		if next = f.fr.takeOver(ctx, f, req, keep, f.endUnwanted); next != nil {
			return next, nil
		}
		switch still := f.standsStill() >= mayStandStill; {
		case still && time.Since(looked) >= lookAgain:
			err = f.fr.brings(ctx, req)
			looked = time.Now()
			if err == nil {
				next = f.fr.takeOver(ctx, f, req, keep, f.endStill)
			}
			switch {
			case next != nil:
				return next, nil
			case err == nil && f.ended() == nil, refused(err), content.Throttled(err):
				return nil, &foreignError{f} // it only has yet to be committed, or his source tells him why
			}
		case !still && f.came.Load() > 0:
			if seen.IsZero() {
				seen = time.Now()
			}
			if !f.ofPeers() || time.Since(seen) >= mayBeSampled {
				return nil, &foreignError{f}
			}
		}
		select {
		case <-tick.C:
		case <-f.released:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return nil, nil
}

// takeOver ends a fetch by end, and starts one for a request in its place. Whoever read it finds that one when he comes
// again, so that he is not there first.
func (fr *Fetcher) takeOver(ctx context.Context, f *fetch, req content.Request, keep bool, end func() bool) *fetch {
	from := fr.sourceOf(req)
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.ctx.Err() != nil || fr.fetches[f.digest] != f || !end() {
		return nil
	}
	next := startFetch(ctx, fr, req, from, keep, func(g *fetch) { g.after = f.released })
	fr.fetches[f.digest] = next
	return next
}

// brings returns nil where the source of a request gives its caller something of the blob now. While a registry is away
// each fetch from it stands still, and whoever only says to have the blob would end them all. What peers bring only a
// fetch can tell.
func (fr *Fetcher) brings(ctx context.Context, req content.Request) error {
	if req.NoUpstream() || fr.opts.PeersOnly(req.Repository) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sampling)
	defer cancel()
	body, err := fr.opts.Upstream.Open(ctx, req, 0, 1)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.ReadFull(body, make([]byte, 1))
	return err
}

// standsStill is for how long nothing has come.
func (f *fetch) standsStill() time.Duration {
	return time.Since(f.start) - time.Duration(f.cameAt.Load())
}

// endStill ends a fetch of which not all has come and that stands still, and reports whether it has. Between two looks
// the fetch may have gone on, and a caller may be reading what came.
func (f *fetch) endStill() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.finishing && f.standsStill() >= mayStandStill && f.failNow(errForeign)
}

// endUnwanted ends a fetch that was to show what peers hold, as for a sample, once its reader has gone. Nobody comes
// back for it, and a source that must give its own bytes would find it in the way on each node. It reports whether it
// has.
func (f *fetch) endUnwanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readers == 0 && len(f.askers.callers) == 0 && !f.finishing && !f.charge.open() && f.failNow(errForeign)
}

// ofPeers reports whether nobody's source is asked for the blob, as for a sample.
func (f *fetch) ofPeers() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.askers.callers) == 0
}

// source is the repository from which alone the bytes of a fetch come, on all nodes, because it has not proved yet that
// it has the content. The zero value: all that have, and peers that hold the blob.
//
// Nodes that fetch a blob from one such source share it in a room of their own, with a partial ingest of their own. So
// whoever names a source of his own is given what that source gives, and nothing else, until the digest of the whole
// shows that it is the content. Where two repositories are first asked for the same blob at one time, be they of one
// registry, that costs a copy for each caller of the second on this node: a manifest may list any digest, and its
// registry need not have looked.
//
// A caller to whom the repository's yes is in doubt is given what it gives to his own credentials. So for him it is
// another source.
type source string

func (fr *Fetcher) sourceOf(req content.Request) source {
	switch {
	case req.NoUpstream():
		return ""
	case fr.opts.Sources.Doubted(req):
		return fr.apart(req)
	case fr.opts.Sources.Proved(req):
		return ""
	}
	return source(req.Repository.String())
}

// foreign reports whether what the store holds may not be given for a request, because its source has not proved to
// have the content. A fetch of that source which has just ended may be about to note that it has.
func (fr *Fetcher) foreign(ctx context.Context, req content.Request) bool {
	if fr.sourceOf(req) == "" {
		return false
	}
	fr.mu.Lock()
	f := fr.fetches[req.Digest]
	fr.mu.Unlock()
	if f != nil && fr.serves(f, req) {
		_ = f.await(ctx, func() bool { return f.committed || !f.verified })
	}
	return fr.sourceOf(req) != ""
}

// apart is a request's repository as the source of those alone who show the same credentials. Other nodes know it by
// the same name, unless they might find out the credentials by trying.
func (fr *Fetcher) apart(req content.Request) source {
	key := fr.secret
	if req.Authorization == "" || !guessable(req.Authorization) {
		key = nil
	}
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(req.Authorization)) // a hash never fails
	return source(req.Repository.String() + "\x00" + hex.EncodeToString(mac.Sum(nil)))
}

// notGuessable is the length in bytes from which nobody finds a token or password by trying.
const notGuessable = 32

func guessable(authorization string) bool {
	scheme, secret, _ := strings.Cut(authorization, " ")
	if account, err := base64.StdEncoding.DecodeString(secret); err == nil && strings.EqualFold(scheme, "Basic") {
		_, secret, _ = strings.Cut(string(account), ":")
	}
	return len(secret) < notGuessable
}

// room is the name by which the swarm knows the fetch of d: the digest itself, or one that stands for both.
func (s source) room(d digest.Digest) digest.Digest {
	if s == "" {
		return d
	}
	return digest.SHA256.FromString("source\x00" + string(s) + "\x00" + d.String())
}

// mark is the name by which the store knows the source.
func (s source) mark() store.Source {
	if s == "" {
		return store.Source{}
	}
	sum := sha256.Sum256([]byte(s))
	return store.Source(sum[:])
}

// keptOf is whose chunks the store is to resume in a fetch from a source: its own. What a repository gave before it had
// proved to have the content it may give for it once it has, if nothing else was kept. For the rest see inherit.
func (fr *Fetcher) keptOf(from source, req content.Request) store.Source {
	own, kept := source(req.Repository.String()).mark(), fr.opts.Store.SizeOf
	if from == "" && !req.NoUpstream() && kept(req.Digest, from.mark()) == 0 && kept(req.Digest, own) > 0 {
		return own
	}
	return from.mark()
}

// serves reports whether a fetch may serve a request: one of the same source, or of one that has proved to have the
// content while none but such take part.
func (fr *Fetcher) serves(f *fetch, req content.Request) bool {
	switch {
	case f.source == "":
		return fr.sourceOf(req) == ""
	case req.NoUpstream():
		return false
	}
	return f.source == fr.apart(req) || f.source == source(req.Repository.String()) && !fr.opts.Sources.Doubted(req)
}
