package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

// level is what a caller wants to read of a repository. The two differ for a gated one: anyone may read what there is to read, but
// not the files.
type level string

const (
	// levelInfo is what the hub's API tells: the commit, the names and sizes of the files.
	levelInfo level = "info"
	// levelFiles is the files. Who may read them may read the rest.
	levelFiles level = "files"
)

const (
	maxAccepted = 16 << 10
	// refusedTTL is for how long the hub's no to everyone is used before it is asked again.
	refusedTTL = time.Minute
)

// access lets a caller read of a repository what the hub would let it read. It asks the hub with the caller's own token, and
// remembers a keyed hash of it. What everyone may read it remembers for all nodes.
type access struct {
	memo     *memo
	accepted *lru.Cache[mark, time.Time] // by repository, level and token
	asking   singleflight.Group
}

func newAccess(m *memo) (*access, error) {
	accepted, err := lru.New[mark, time.Time](maxAccepted)
	if err != nil {
		return nil, err
	}
	return &access{memo: m, accepted: accepted}, nil
}

// probe asks the hub for something of the repository as whoever has the token, or as anyone. nil: it gave it.
type probe func(ctx context.Context, authorization string) error

// admitted says on what grounds a caller was let on.
type admitted struct {
	// stale is why the hub could not be asked; nil: it was, lately.
	stale error
}

// admit returns an error where the caller may not read r at a level: the hub's own refusal, or why it could not be asked. The hub's
// yes is used for ttl. While
// it cannot be asked those are let on whom it has let on before, and no others.
func (a *access) admit(ctx context.Context, r repo, l level, authorization string, ttl time.Duration, ask probe) (admitted, error) {
	if a.fresh(r, l, authorization, ttl) {
		return admitted{}, nil
	}
	open, err := a.anyone(ctx, r, l, ttl, ask)
	switch {
	case err != nil:
		return admitted{}, err
	case open.Yes:
		return admitted{stale: open.cause}, nil
	}
	who := a.mark(r, l, authorization)
	done := a.asking.DoChan(string(who[:]), func() (any, error) { return nil, ask(context.WithoutCancel(ctx), authorization) })
	select {
	case res := <-done:
		err = res.Err
	case <-ctx.Done():
		return admitted{}, context.Cause(ctx)
	}
	switch {
	case err == nil:
		a.accept(r, l, authorization)
		return admitted{}, nil
	case away(err):
		if a.accepted.Contains(who) || l == levelInfo && a.accepted.Contains(a.mark(r, levelFiles, authorization)) {
			return admitted{stale: err}, nil
		}
		return admitted{}, err
	case denied(err) && !absent(err):
		a.accepted.Remove(who)
		if l == levelInfo { // who may not read that may read nothing
			a.accepted.Remove(a.mark(r, levelFiles, authorization))
		}
	}
	return admitted{}, err
}

// accept remembers that the hub let someone read.
func (a *access) accept(r repo, l level, authorization string) {
	a.accepted.Add(a.mark(r, l, authorization), time.Now())
}

func (a *access) mark(r repo, l level, authorization string) mark {
	return a.memo.mark("caller", string(l), r.name(), authorization)
}

// fresh reports whether the hub accepted these credentials lately, at this level or a higher one.
func (a *access) fresh(r repo, l level, authorization string, ttl time.Duration) bool {
	levels := []level{l}
	if l == levelInfo {
		levels = append(levels, levelFiles)
	}
	for _, l := range levels {
		if at, ok := a.accepted.Get(a.mark(r, l, authorization)); ok && time.Since(at) < ttl {
			return true
		}
	}
	return false
}

// anyone reports whether everybody may read r at a level. It fails only when ctx ends.
func (a *access) anyone(ctx context.Context, r repo, l level, ttl time.Duration, ask probe) (found, error) {
	k, maxAge := openKey(r, l), ttl
	if old, _, known := a.memo.own(k); known && !old.Yes {
		maxAge = min(ttl, refusedTTL)
	}
	open, err := a.memo.do(ctx, k, maxAge, mark{}, func(ctx context.Context) (record, error) {
		err := ask(ctx, "")
		switch {
		case err == nil:
			return record{Yes: true}, nil
		case denied(err) && !absent(err):
			return record{}, nil
		}
		return record{}, err
	})
	switch {
	case err == nil:
		return open, nil
	case ctx.Err() != nil:
		return found{}, fmt.Errorf("ask the hub about %s: %w", r.name(), context.Cause(ctx))
	}
	return found{}, nil // it is not known; the caller's own question tells it why
}

// openKey is that of whether everybody may read a repository.
func openKey(r repo, l level) string { return key("open", string(l), r.name()) }

// open reports whether everybody may read r at a level, as far as this node knows.
func (a *access) open(r repo, l level) bool {
	rec, _, ok := a.memo.own(openKey(r, l))
	return ok && rec.Yes
}

// absent reports whether the hub's answer is that the repository has no such file or revision, which says nothing of who may read it.
func absent(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	code := ""
	if ok {
		code = r.header.Get("X-Error-Code")
	}
	return ok && r.status == http.StatusNotFound && (code == "EntryNotFound" || code == "RevisionNotFound")
}
