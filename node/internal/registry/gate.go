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
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

const (
	maxAccepted   = 16 << 10
	maxMembers    = 64 << 10
	maxChallenges = 1 << 10
	maxOutages    = 1 << 10
	maxAnyone     = 4 << 10

	// outageTTL is how long a registry that could not be asked is not asked again where the policy lets the gate and the
	// tags do without. Otherwise each request of a pull would wait for it anew.
	outageTTL = 10 * time.Second

	// anyonePause is for how long, at least, a registry is not asked again whether anyone may read a repository, and
	// anyoneAtOnce how many such questions are asked at one time.
	anyonePause  = time.Minute
	anyoneAtOnce = 4
)

// mark is a keyed hash of what is remembered, so that memory holds neither credentials nor anything made from them
// without the key.
type mark [16]byte

// gate lets a caller read content of a repository when the registry would. It asks the registry with the caller's own
// credentials, and remembers two things: whose credentials the registry accepted for which repository, and which
// digests are in which repository. The second keeps a caller from reading, through a repository he may read, the blob of
// another by its digest. Where callers show tokens, which do not outlive an outage, it also asks as nobody, and remembers
// which repositories are there for everyone.
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

	asking *semaphore.Weighted                       // bounds the questions that no caller waits for
	anyone *lru.Cache[content.Repository, time.Time] // when to ask next whether anyone may read a repository
	asked  sync.Mutex                                // makes looking into anyone and noting there one step

	saving sync.Mutex
	timer  *time.Timer // pending save; nil where there is none
	closed bool
}

func newGate(upstream Upstream, timeout time.Duration, memory Memory, witness Witness, log *slog.Logger) (*gate, error) {
	g := &gate{
		upstream: upstream, timeout: timeout, memory: memory, witness: witness, log: log, secret: make([]byte, sha256.Size),
		asking: semaphore.NewWeighted(anyoneAtOnce),
	}
	_, _ = rand.Read(g.secret) // never fails, says crypto/rand
	var errs [5]error
	g.accepted, errs[0] = lru.New[mark, time.Time](maxAccepted)
	g.members, errs[1] = lru.New[mark, struct{}](maxMembers)
	g.challenges, errs[2] = lru.New[content.Repository, []string](maxChallenges)
	g.outages, errs[3] = lru.New[string, time.Time](maxOutages)
	g.anyone, errs[4] = lru.New[content.Repository, time.Time](maxAnyone)
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

// everyone stands for whoever comes, with a token that the registry gives to anyone. That is not the same as a caller without
// credentials, whom such a registry refuses as long as it can be asked.
func (g *gate) everyone(repo content.Repository) mark { return g.mark("everyone", repo, "") }

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
		g.confirm(ctx, rule, req)
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
// secret. Of a Bearer challenge that would be useless, for the token server gives another token each time, if it can be asked
// at all.
func (g *gate) offline(ctx context.Context, rule policy.Rule, repo content.Repository, authorization string, cause error) error {
	if rule.Authorization == policy.Exempt {
		return nil
	}
	if rule.Offline != policy.AllowKnown {
		return fmt.Errorf("the policy denies %s while its registry cannot be asked: %w", repo, cause)
	}
	// Who may read without credentials may read with any.
	for _, known := range []mark{g.caller(repo, authorization), g.caller(repo, ""), g.everyone(repo)} {
		if _, ok := g.accepted.Get(known); ok {
			return nil
		}
	}
	if g.witness != nil && g.witness.Public(ctx, repo) {
		g.accepted.Add(g.everyone(repo), time.Time{})
		return nil
	}
	if challenge, ok := g.challenges.Get(repo); ok && authorization == "" {
		return &content.UpstreamError{
			Op: "while upstream cannot be asked: " + cause.Error(), Status: http.StatusUnauthorized, Challenge: challenge,
		}
	}
	return cause
}

// public tells whether the registry has let anyone read the repository, without credentials or with a token that it gives
// to anyone.
func (g *gate) public(repo content.Repository) bool {
	return g.accepted.Contains(g.caller(repo, "")) || g.accepted.Contains(g.everyone(repo))
}

// confirm remembers that the registry accepted who shows req's authorization, and that it has req's digest, where one is named.
func (g *gate) confirm(ctx context.Context, rule policy.Rule, req content.Request) {
	g.outages.Remove(req.Repository.Registry)
	news := g.accept(g.caller(req.Repository, req.Authorization))
	if req.Digest != "" {
		news = g.enroll(held, req.Repository, req.Digest) || news
		g.askForAnyone(ctx, rule, req)
	}
	if news {
		g.saveSoon()
	}
}

// accept remembers an acceptance by the registry and tells whether it was news.
func (g *gate) accept(who mark) (news bool) {
	news = !g.accepted.Contains(who)
	g.accepted.Add(who, time.Now())
	return news
}

// askForAnyone finds out whether the registry lets anyone read what it has let the caller of req read, with a token for which
// no credentials are asked. A Bearer token lives a few minutes: in an outage callers come with another one or, since the
// token server is away too, with none, and all that can be said of them then is whether anyone may read the repository. The
// caller does not wait for it.
func (g *gate) askForAnyone(ctx context.Context, rule policy.Rule, req content.Request) {
	if !bearer(req.Authorization) || rule.Offline != policy.AllowKnown || !g.dueForAnyone(req.Repository) {
		return
	}
	go func() {
		ctx := context.WithoutCancel(ctx)
		_ = g.asking.Acquire(ctx, 1) // fails only when ctx ends
		defer g.asking.Release(1)
		ctx, cancel := context.WithTimeout(ctx, g.timeout)
		defer cancel()
		var err error
		if req.Authorization, err = g.upstream.Authorize(ctx, req.Repository, pullsecret.Credential{}); err == nil {
			_, _, err = g.upstream.Stat(ctx, req)
		}
		if unreachable(err) {
			return
		}
		g.anyone.Add(req.Repository, time.Now().Add(max(rule.AuthorizationTTL, anyonePause)))
		if err != nil { // it has become private, if it ever was not
			g.accepted.Remove(g.everyone(req.Repository))
		} else if g.accept(g.everyone(req.Repository)) {
			g.saveSoon()
		}
	}()
}

// dueForAnyone tells whether it is time to ask, and that someone is about to.
func (g *gate) dueForAnyone(repo content.Repository) bool {
	g.asked.Lock()
	defer g.asked.Unlock()
	now := time.Now()
	if next, ok := g.anyone.Get(repo); ok && now.Before(next) {
		return false
	}
	g.anyone.Add(repo, now.Add(anyonePause))
	return true
}

func bearer(authorization string) bool {
	scheme, _, _ := strings.Cut(authorization, " ")
	return strings.EqualFold(scheme, "Bearer")
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
