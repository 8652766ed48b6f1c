package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// level is what a caller wants to read of a repository. The two differ for a gated one: anyone may read what there is
// to read, but not the files.
type level string

const (
	// levelInfo is what the hub's API tells: the commit, the names and sizes of the files.
	levelInfo level = "info"
	// levelFiles is the files. Who may read them may read the rest.
	levelFiles level = "files"
)

const (
	// refusedTTL is for how long the hub's no to everyone is used before it is asked again.
	refusedTTL = time.Minute
	// guessable is the length in bytes below which a token might be found by trying. The hub's have 37.
	guessable = 32
)

// access lets a caller read of a repository what the hub would let it read. It asks the hub with the caller's own
// token. Whom the hub accepted the gate remembers. What everyone may read is asked once for all nodes, and so is who
// has which token.
type access struct {
	memo *memo
	gate *gate.Gate
	hub  string // its name
}

// probe asks the hub for something of the repository as whoever has the token, or as anyone. nil: it gave it.
type probe func(ctx context.Context, authorization string) error

// admitted says on what grounds a caller was let on.
type admitted struct {
	// stale is why the hub could not be asked; nil: it was, lately.
	stale error
}

// admit returns an error where the caller may not read r at a level: the hub's own refusal, or why it could not be
// asked. While it cannot be asked those are let on whom it has let on before, and no others.
func (a *access) admit(ctx context.Context, rule policy.Rule, r repo, l level, authorization string,
	ask probe) (admitted, error) {
	if a.fresh(rule, r, l, authorization) {
		return admitted{}, nil
	}
	open, err := a.anyone(ctx, r, l, rule.Authorization.TTL, ask)
	switch {
	case err != nil:
		return admitted{}, err
	case open.Yes:
		return admitted{stale: open.cause}, nil
	}
	at, err := a.word(ctx, rule, r, l, authorization, ask)
	switch {
	case err == nil && authorization == "":
		a.learn(r, l, true, time.Since(at))
		return admitted{}, nil
	case err == nil:
		a.gate.Accept(a.source(r, l), authorization, at)
		return admitted{}, nil
	case away(err) && !throttling(err): // which whoever has a token can bring about for himself
		for _, source := range a.enough(r, l) {
			if a.gate.Remembers(rule, source, authorization) {
				return admitted{stale: err}, nil
			}
		}
	case denied(err) && !absent(err):
		refusal := &content.UpstreamError{Op: "ask the hub", Status: http.StatusForbidden}
		for _, source := range a.enough(r, l) { // who may not read what there is may read nothing
			a.gate.Refused(source, authorization, refusal)
		}
	}
	return admitted{}, err
}

// source is what the hub decides about, for the gate.
func (a *access) source(r repo, l level) gate.Source {
	return gate.Source("hub " + string(l) + " " + a.hub + "/" + r.name())
}

// enough are the sources whose yes lets a caller read at a level.
func (a *access) enough(r repo, l level) []gate.Source {
	if l == levelInfo {
		return []gate.Source{a.source(r, levelInfo), a.source(r, levelFiles)}
	}
	return []gate.Source{a.source(r, levelFiles)}
}

// fresh reports whether the hub accepted these credentials lately.
func (a *access) fresh(rule policy.Rule, r repo, l level, authorization string) bool {
	for _, source := range a.enough(r, l) {
		if a.gate.Accepts(rule, source, authorization) {
			return true
		}
	}
	return false
}

// word gets the hub's word on a caller, once for all who show the same token, at this node and at the others. at is
// when the hub gave it.
//
// Only a yes is shared, and it goes by a hash of the token for this repository. That is safe among admitted nodes. The
// hash tells nothing of a token that is too long to be guessed, and no other is shared. It cannot be used at the hub,
// nor for another repository. A node that says yes falsely lets somebody read what it could give away itself. What an
// outage changes is decided by this node's own memory, so that nobody is let on then who was refused here.
func (a *access) word(ctx context.Context, rule policy.Rule, r repo, l level, authorization string,
	ask probe) (at time.Time, err error) {
	k, shared := a.callerKey(r, l, authorization)
	var res room.Answer
	select {
	case res = <-a.memo.once(ctx, k, rule.Authorization.TTL, shared, func(ctx context.Context) (record, error) {
		return record{Yes: true}, ask(ctx, authorization)
	}):
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
	if res.Err != nil {
		a.memo.forget(k)
		return time.Time{}, res.Err
	}
	if !res.Val.(record).Yes {
		return time.Time{}, fmt.Errorf("another node's word on a caller: %w", content.ErrUnavailable)
	}
	if _, age, known := a.memo.own(k); known && shared {
		return time.Now().Add(-age), nil
	}
	return time.Now(), nil
}

// callerKey is that of whether the holder of a token may read. shared: other nodes may know it.
func (a *access) callerKey(r repo, l level, authorization string) (k string, shared bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	sum := sha256.Sum256([]byte(strings.Join([]string{"shoal caller", a.hub, r.name(), string(l), authorization},
		"\x00")))
	shared = strings.EqualFold(scheme, "Bearer") && len(token) >= guessable
	return key(callerKind, string(l), r.name(), hex.EncodeToString(sum[:])), shared
}

// accept remembers that the hub let someone read.
func (a *access) accept(r repo, l level, authorization string) {
	a.gate.Accept(a.source(r, l), authorization, time.Now())
}

// anyone reports whether everybody may read r at a level. It fails only when the caller has left. What everybody could
// read before gate.ThrottledPublic does where the hub is away, and not where somebody may have brought about that it
// was not asked.
func (a *access) anyone(ctx context.Context, r repo, l level, ttl time.Duration, ask probe) (found, error) {
	k, maxAge := openKey(r, l), ttl
	if old, _, known := a.memo.own(k); known && !old.Yes {
		maxAge = min(ttl, a.memo.slack.of(refusedTTL))
	}
	const hasty = gate.ThrottledPublic
	open, err := a.memo.doWith(ctx, k, maxAge, hasty, mark{}, func(ctx context.Context) (record, error) {
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
	case err == nil && (l == levelFiles && a.shutSince(r, open.age) ||
		provoked(open.cause) && open.age > gate.ThrottledPublic):
		return found{}, nil
	case err == nil:
		if l == levelInfo && !open.Yes && !open.stale {
			a.learn(r, levelFiles, false, open.age)
		}
		return open, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return found{}, fmt.Errorf("ask the hub about %s: %w", r.name(), context.Cause(ctx))
	}
	return found{}, nil // it is not known; the caller's own question tells it why
}

// shutSince reports whether everyone was refused what there is to know of r after everyone was given its files, so long
// ago.
func (a *access) shutSince(r repo, age time.Duration) bool {
	info, since, known := a.memo.own(openKey(r, levelInfo))
	return known && !info.Yes && since <= age
}

// learn remembers whether everybody could read r at a level so long ago, if that is newer than what is known, of which
// the disk has whole seconds. A no is kept on disk only where it is news: anybody can make up names of repositories
// that nobody may read. Where nobody may read what there is to know the files are no different, so that other nodes
// hear it of both.
func (a *access) learn(r repo, l level, yes bool, ago time.Duration) {
	k := openKey(r, l)
	was, age, known := a.memo.own(k)
	if !known || !yes && ago <= age || ago+time.Second < age {
		a.memo.learn(k, record{Yes: yes}, ago, yes || was.Yes)
	}
	if !yes && l == levelInfo {
		a.learn(r, levelFiles, false, ago)
	}
}

// openKey is that of whether everybody may read a repository.
func openKey(r repo, l level) string { return key("open", string(l), r.name()) }

// open reports whether everybody may read what there is to know of r, as far as this node knows. stale: the hub could
// not be asked, so that others may know of a later no.
func (a *access) open(ctx context.Context, r repo, stale bool) bool {
	k := openKey(r, levelInfo)
	rec, age, ok := a.memo.own(k)
	if ok && rec.Yes && stale {
		rec, _, ok = a.memo.recall(ctx, k, rec, age, true)
	}
	return ok && rec.Yes
}

// absent reports whether the hub's answer is that the repository has no such file or revision, which says nothing of
// who may read it.
func absent(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	code := ""
	if ok {
		code = r.header.Get("X-Error-Code")
	}
	return ok && r.status == http.StatusNotFound && (code == "EntryNotFound" || code == "RevisionNotFound")
}
