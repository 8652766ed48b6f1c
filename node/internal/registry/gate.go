package registry

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

const (
	maxAccepted   = 16 << 10
	maxMembers    = 64 << 10
	maxChallenges = 1 << 10
	maxOutages    = 1 << 10

	// outageTTL is how long a registry that could not be asked is not asked again where the policy lets the gate and the
	// tags do without. Otherwise each request of a pull would wait for it anew.
	outageTTL = 10 * time.Second
)

// mark is a keyed hash of what is remembered, so that memory holds neither credentials nor anything made from them
// without the key.
type mark [16]byte

// gate lets a caller read content of a repository when the registry would. It asks the registry with the caller's own
// credentials, and remembers two things: whose credentials the registry accepted for which repository, and which
// digests are in which repository. The second keeps a caller from reading, through a repository he may read, the blob of
// another by its digest.
//
// A digest is held where the registry has confirmed it, or has taken a manifest for which it had to have it. It is only
// listed where a manifest names it that whoever pushed it may have made up. That is enough while the registry cannot be
// asked, and not otherwise.
type gate struct {
	upstream Upstream
	timeout  time.Duration
	memory   Memory
	witness  Witness // nil: none
	log      *slog.Logger
	secret   []byte

	accepted   *lru.Cache[mark, time.Time]              // by repository and credentials
	members    *lru.Cache[mark, struct{}]               // by repository and digest, for held and listed ones each
	challenges *lru.Cache[content.Repository, []string] // what the registry asks of callers without credentials
	outages    *lru.Cache[string, time.Time]            // by registry: when it could not be asked
	questions  singleflight.Group

	saving sync.Mutex
	timer  *time.Timer // pending save; nil where there is none
	closed bool
}

func newGate(upstream Upstream, timeout time.Duration, memory Memory, witness Witness, log *slog.Logger) (*gate, error) {
	g := &gate{upstream: upstream, timeout: timeout, memory: memory, witness: witness, log: log, secret: make([]byte, sha256.Size)}
	_, _ = rand.Read(g.secret) // never fails, says crypto/rand
	var errs [4]error
	g.accepted, errs[0] = lru.New[mark, time.Time](maxAccepted)
	g.members, errs[1] = lru.New[mark, struct{}](maxMembers)
	g.challenges, errs[2] = lru.New[content.Repository, []string](maxChallenges)
	g.outages, errs[3] = lru.New[string, time.Time](maxOutages)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	g.load()
	return g, nil
}

func (g *gate) mark(kind string, repo content.Repository, what string) mark {
	mac := hmac.New(sha256.New, g.secret)
	// Neither hosts nor names hold a zero byte, so no two questions write the same.
	_, _ = fmt.Fprintf(mac, "%s\x00%s\x00%s\x00%s", kind, repo.Registry, repo.Name, what) // a hash never fails
	return mark(mac.Sum(nil)[:len(mark{})])
}

func (g *gate) caller(repo content.Repository, authorization string) mark {
	return g.mark("caller", repo, authorization)
}

// admit returns nil when the caller of req may read its digest. Otherwise the error is upstream's own refusal, or
// content.ErrUnavailable where upstream cannot be asked and the policy does not vouch for the caller.
func (g *gate) admit(ctx context.Context, rule policy.Rule, req content.Request) error {
	if rule.Authorization == policy.Exempt {
		return nil
	}
	if g.holds(req.Repository, req.Digest) && g.accepts(rule, req.Repository, req.Authorization) {
		return nil
	}
	known := g.lists(req.Repository, req.Digest)
	if known && g.outage(req.Repository) && g.offline(ctx, rule, req.Repository, req.Authorization, content.ErrUnavailable) == nil {
		return nil
	}
	key := g.mark(req.Kind.String()+req.Digest.String(), req.Repository, req.Authorization)
	done := g.questions.DoChan(string(key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.timeout)
		defer cancel()
		_, _, err := g.upstream.Stat(ctx, req)
		return nil, err
	})
	var err error
	select {
	case r := <-done:
		err = r.Err
	case <-ctx.Done():
		return fmt.Errorf("ask upstream about %s of %s: %w", req.Digest, req.Repository, context.Cause(ctx))
	}
	if err == nil {
		g.confirm(req.Repository, req.Authorization, req.Digest)
		return nil
	}
	err = fmt.Errorf("ask upstream about %s of %s: %w", req.Digest, req.Repository, err)
	if !unreachable(err) {
		g.refused(req.Repository, req.Authorization, err)
		return err
	}
	g.outages.Add(req.Repository.Registry, time.Now())
	if !known {
		return err
	}
	return g.offline(ctx, rule, req.Repository, req.Authorization, err)
}

// unreachable tells whether err is for want of an answer, rather than an answer about the caller or the content.
func unreachable(err error) bool {
	return errors.Is(err, content.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// outage tells whether the registry could not be asked a moment ago.
func (g *gate) outage(repo content.Repository) bool {
	at, ok := g.outages.Get(repo.Registry)
	return ok && time.Since(at) < outageTTL
}

// accepts tells whether the registry accepted these credentials for the repository within the policy's time.
func (g *gate) accepts(rule policy.Rule, repo content.Repository, authorization string) bool {
	if rule.Authorization == policy.Exempt {
		return true
	}
	at, ok := g.accepted.Get(g.caller(repo, authorization))
	return ok && time.Since(at) < rule.AuthorizationTTL
}

// holds tells whether the registry vouches for the digest's being in the repository.
func (g *gate) holds(repo content.Repository, d digest.Digest) bool {
	_, ok := g.members.Get(g.mark(held, repo, d.String()))
	return ok
}

// lists tells whether anything does.
func (g *gate) lists(repo content.Repository, d digest.Digest) bool {
	_, ok := g.members.Get(g.mark(listed, repo, d.String()))
	return ok || g.holds(repo, d)
}

// offline decides in the registry's place while it cannot be asked; cause is why. Where a caller may be let on once he
// shows the credentials that the registry asked for earlier, he gets that challenge: the runtime then presents its pull
// secret. Of a Bearer challenge that would be useless, for the token server gives another token each time.
func (g *gate) offline(ctx context.Context, rule policy.Rule, repo content.Repository, authorization string, cause error) error {
	if rule.Authorization == policy.Exempt {
		return nil
	}
	if rule.Offline != policy.AllowKnown {
		return fmt.Errorf("the policy denies %s while its registry cannot be asked: %w", repo, cause)
	}
	for _, known := range []string{authorization, ""} { // who may read without credentials may read with any
		if _, ok := g.accepted.Get(g.caller(repo, known)); ok {
			return nil
		}
	}
	if g.witness != nil && g.witness.Public(ctx, repo) {
		g.accepted.Add(g.caller(repo, ""), time.Time{}) // known, but not fresh: the registry is asked as soon as it can be
		return nil
	}
	if challenge, ok := g.challenges.Get(repo); ok && authorization == "" {
		return &content.UpstreamError{
			Op: "while upstream cannot be asked: " + cause.Error(), Status: http.StatusUnauthorized, Challenge: challenge,
		}
	}
	return cause
}

// public tells whether the registry has let callers without credentials read the repository.
func (g *gate) public(repo content.Repository) bool { return g.accepted.Contains(g.caller(repo, "")) }

// confirm remembers an acceptance by the registry.
func (g *gate) confirm(repo content.Repository, authorization string, digests ...digest.Digest) {
	g.outages.Remove(repo.Registry)
	known := g.accepted.Contains(g.caller(repo, authorization))
	g.accepted.Add(g.caller(repo, authorization), time.Now())
	if g.enroll(held, repo, digests...) || !known {
		g.saveSoon()
	}
}

// The ways in which a digest is in a repository.
const (
	held   = "member"
	listed = "listed"
)

// enroll remembers that the digests are in the repository, and how. It tells whether any was news.
func (g *gate) enroll(how string, repo content.Repository, digests ...digest.Digest) (news bool) {
	for _, d := range digests {
		m := g.mark(how, repo, d.String())
		news = news || !g.members.Contains(m)
		g.members.Add(m, struct{}{})
	}
	return news
}

// learn remembers what a manifest of the repository lists. One that is only listed itself vouches for nothing.
func (g *gate) learn(repo content.Repository, d digest.Digest, m manifestDoc) {
	required, optional := m.children()
	how := listed
	if g.holds(repo, d) {
		how = held
	}
	g.enroll(how, repo, required...)
	g.enroll(listed, repo, optional...)
}

// refused forgets an earlier acceptance when err is a refusal.
func (g *gate) refused(repo content.Repository, authorization string, err error) {
	if !content.Denied(err) {
		return
	}
	g.accepted.Remove(g.caller(repo, authorization))
	if up, ok := errors.AsType[*content.UpstreamError](err); ok && len(up.Challenge) > 0 && strings.HasPrefix(strings.ToLower(up.Challenge[0]), "basic") {
		g.challenges.Add(repo, up.Challenge)
	}
}
