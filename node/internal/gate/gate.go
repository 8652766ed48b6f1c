package gate

import (
	"cmp"
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

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

const (
	maxAccepted   = 16 << 10
	maxContents   = 64 << 10
	maxChallenges = 1 << 10
	maxChallenge  = 4 << 10 // bytes of one that is remembered: a source chooses how long it is
	maxSilences   = 4 << 10
	maxAnyone     = 4 << 10
	maxUnsure     = 16 << 10
	maxStarts     = 4 << 10

	// silenceTTL is how long a source that did not answer a caller is not asked again for that caller, where the policy
	// lets the gate do without. Otherwise each request of a pull would wait for it anew.
	silenceTTL = 10 * time.Second

	// unsureTTL is for how long, at most, a source is not asked again about a caller and a content of which its yes was
	// unsure. A puller that reads a blob in many ranges would wait for that, and for a search, each time.
	unsureTTL = time.Minute

	// longest bounds a question whose source goes on sending other bytes, in Options.Timeout; looks is how often in
	// that time the gate looks for such bytes.
	longest, looks = 3, 8

	// anyonePause is for how long, at least, a source is not asked again what anyone may read of it, and anyoneAtOnce
	// how many such questions are asked at one time.
	anyonePause  = time.Minute
	anyoneAtOnce = 4

	// ThrottledPublic is how long what anyone could read stays readable while its source throttles. No credentials that
	// may have been revoked meanwhile are in play.
	ThrottledPublic = 24 * time.Hour
)

// Hedge is how long a source that lets anyone read is waited for before its content is given without its word.
const Hedge = time.Second

// errSilent ends a question to a source that is silent.
var errSilent = errors.New("the source does not answer")

// errUnsure is a yes that may be about anything: there are proxies that answer every question with a page, of a login
// or for the time of an outage. It accepts nobody: such a caller is given what the source gives itself.
var errUnsure = errors.New("the answer does not show that it is about the content")

// errOther is errUnsure of a yes that is about something else, by what this node holds. That it does is nothing for
// whoever asks to know.
var errOther = fmt.Errorf("it names another size: %w", errUnsure)

// Source names who decides who may read some content. Fronts choose the names; those of different fronts must differ.
type Source string

// Request asks whether a caller may read some content of a source.
type Request struct {
	Source Source
	// Digest of the content. Empty: any content of the source.
	Digest digest.Digest
	// Credentials are what the caller shows: a whole Authorization header. They are kept as a keyed hash only. Empty:
	// none.
	Credentials string
	// Upstream asks the source about this very request.
	Upstream Upstream
}

// Upstream puts the questions of one Request to its source, in the source's own protocol. Its errors are
// *content.UpstreamError for what the source answered, and content.ErrUnavailable where it did not answer.
type Upstream interface {
	// Ask asks whether the caller may read the content. Without an error it is a yes, and size is how many bytes of it
	// there are by that answer; negative: the answer itself shows that it is about the content.
	Ask(ctx context.Context) (size int64, err error)
	// AskForAnyone asks the same for whoever comes: without credentials, or with such as the source gives to anyone.
	AskForAnyone(ctx context.Context) (size int64, err error)
	// Sample reads n bytes of the content from offset off, with the caller's credentials. It returns the offset from
	// which the source gives it: 0, and no bytes, where that is the start and not off.
	Sample(ctx context.Context, off, n int64) (data []byte, at int64, err error)
	// Whole reports whether only the whole content can be sampled.
	Whole() bool
	// Arrived counts the bytes that have come from where the source is, for any request.
	Arrived() int64
}

// Cache is the content that came from elsewhere.
type Cache interface {
	// Held opens content that this node holds whole. It fails with content.ErrNotFound for other content.
	Held(d digest.Digest) (content.Reader, error)
	// Has is the size of content that this node holds whole. To open content is a use of it, which keeps it from
	// eviction. To ask for its size is none.
	Has(d digest.Digest) (size int64, ok bool)
	// FromPeers opens content that other nodes hold. It asks no source. It fails with content.ErrNotFound where no node
	// has it.
	FromPeers(ctx context.Context, d digest.Digest) (content.Reader, error)
}

// Witness is the other nodes. What they have seen themselves counts beside what this node has; see HeardPublic.
type Witness interface {
	// Hear asks other nodes what they know of a source and of contents.
	Hear(ctx context.Context, source Source, contents []digest.Digest) Testimony
}

// Testimony is what nodes know of a source and of contents.
type Testimony struct {
	// Public and Refused are how long ago the source let anyone read, and refused whoever comes: of each node that has
	// itself seen so, and last of each.
	Public, Refused []time.Duration
	// Proven are the contents of which a node has proof that the source has them, and Held those that a node holds
	// whole.
	Proven, Held []digest.Digest
	// Everyone: all other nodes of the swarm have answered, so what is not in Held is held by none.
	Everyone bool
}

// Options configure a Gate.
type Options struct {
	// Timeout is how long a source may be silent when it is asked: no answer, and no byte from where it is. 0: Timeout
	// of content.DefaultFirstByte.
	Timeout time.Duration
	// Cache is required.
	Cache Cache
	// Memory is optional: without it a restart forgets who was accepted and what was proved.
	Memory content.Memory
	// Witness is optional: without it a node serves nothing during an outage from sources that it has not read from
	// itself.
	Witness Witness
	Logger  *slog.Logger
}

// mark is a keyed hash of what is remembered, so that memory holds neither credentials nor anything made from them
// without the key.
type mark [16]byte

// Gate lets a caller read content of a source when the source would. It is safe for concurrent use.
type Gate struct {
	opts   Options
	log    *slog.Logger
	secret []byte

	// Whoever comes makes up names of sources and credentials, so each of these is shared among the owners of sources,
	// and what sources refuse, or say to a token, is kept apart from what they say to lasting credentials.
	accepted   *lru.Fair[mark, time.Time]    // by source and credentials: when the source last said yes
	tokens     *lru.Fair[mark, time.Time]    // the same of Bearer tokens
	refused    *lru.Fair[mark, time.Time]    // when a source last refused whoever comes; see nobody
	proven     *lru.Fair[mark, struct{}]     // by source and content
	sworn      *lru.Fair[mark, time.Time]    // the same by the word of other nodes alone: when they said so
	claimed    *lru.Fair[mark, int64]        // by source and content: its size as a manifest has it, or 0
	challenges *lru.Fair[Source, []string]   // what the source asks of callers without credentials
	silences   *lru.Fair[mark, time.Time]    // by source and credentials: when the source last did not answer
	hearings   *lru.Cache[mark, *hearing]    // by source and content: what other nodes said a moment ago
	unsure     *lru.Cache[mark, time.Time]   // by source, credentials and content: since when its yes is errUnsure
	starts     *lru.Cache[Source, time.Time] // when each last gave no part of some content but from its start
	questions  Questions

	asking *semaphore.Weighted           // bounds the questions that no caller waits for
	anyone *lru.Cache[Source, time.Time] // when to ask next what anyone may read
	asked  sync.Mutex                    // makes looking into anyone and noting there one step

	ctx     context.Context // ends with Close
	end     context.CancelFunc
	running sync.WaitGroup // questions that may outlive who asked

	saving sync.Mutex
	timer  *time.Timer // pending save; nil where there is none
	closed bool
}

// New makes a gate. Close saves what it knows.
func New(opts Options) (*Gate, error) {
	if opts.Cache == nil {
		return nil, errors.New("gate: needs a Cache")
	}
	opts.Timeout = cmp.Or(opts.Timeout, Timeout(content.DefaultFirstByte))
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	g := &Gate{
		opts: opts, log: opts.Logger, secret: make([]byte, secretSize), asking: semaphore.NewWeighted(anyoneAtOnce),
		accepted: lru.NewFair[mark, time.Time](maxAccepted), tokens: lru.NewFair[mark, time.Time](maxAccepted),
		refused: lru.NewFair[mark, time.Time](maxAccepted), silences: lru.NewFair[mark, time.Time](maxSilences),
		proven: lru.NewFair[mark, struct{}](maxContents), claimed: lru.NewFair[mark, int64](maxContents),
		challenges: lru.NewFair[Source, []string](maxChallenges), sworn: lru.NewFair[mark, time.Time](maxContents),
		hearings: lru.New[mark, *hearing](maxHearings), unsure: lru.New[mark, time.Time](maxUnsure),
		starts: lru.New[Source, time.Time](maxStarts), anyone: lru.New[Source, time.Time](maxAnyone),
	}
	g.ctx, g.end = context.WithCancel(context.Background())
	_, _ = rand.Read(g.secret) // never fails, says crypto/rand
	g.load()
	return g, nil
}

func (g *Gate) mark(kind string, source Source, what string) mark {
	mac := hmac.New(sha256.New, g.secret)
	// Names of sources hold no zero byte, so no two questions write the same.
	_, _ = fmt.Fprintf(mac, "%s\x00%s\x00%s", kind, source, what) // a hash never fails
	return mark(mac.Sum(nil)[:len(mark{})])
}

func (g *Gate) caller(source Source, credentials string) mark {
	return g.mark("caller", source, credentials)
}

// everyone stands for whoever comes, with a token that the source gives to anyone. That is not the same as a caller
// without credentials, whom such a source refuses as long as it can be asked.
func (g *Gate) everyone(source Source) mark { return g.mark("everyone", source, "") }

// nobody stands for whoever comes, too, at a source that has refused them. What this node and others remember of the
// time before counts no more then.
func (g *Gate) nobody(source Source) mark { return g.mark("nobody", source, "") }

// Owner is on whose account something is remembered of a source: the domain of its registry, and the host.
func (s Source) Owner() lru.Owner {
	_, where, _ := strings.Cut(string(s), " ")
	host, _, _ := strings.Cut(where, "/")
	return lru.OwnerOf(host)
}

// yeses are where it is remembered that sources accepted such credentials.
func (g *Gate) yeses(credentials string) *lru.Fair[mark, time.Time] {
	if bearer(credentials) {
		return g.tokens
	}
	return g.accepted
}

func (g *Gate) thing(source Source, d digest.Digest) mark {
	return g.mark("content", source, d.String())
}

// pair stands for one content that one caller asks for.
func (g *Gate) pair(source Source, credentials string, d digest.Digest) mark {
	return g.mark("pair", source, credentials+"\x00"+d.String()) // no header holds a zero byte
}

// Admit returns nil when the caller may read the content. Otherwise the error is the source's own refusal, or
// content.ErrUnavailable where the source does not decide and the policy does not vouch for the caller.
func (g *Gate) Admit(ctx context.Context, rule policy.Rule, req Request) error {
	if rule.Authorization.Mode == policy.Exempt {
		return nil
	}
	pair := g.pair(req.Source, req.Credentials, req.Digest)
	accepted := g.Accepts(rule, req.Source, req.Credentials)
	if accepted && g.proved(req.Source, req.Digest) {
		g.unsure.Remove(pair)
		return nil
	}
	since, unsure := g.unsure.Get(pair)
	// Where the source must give nothing itself, others may have it since.
	if unsure && time.Since(since) < min(rule.Authorization.TTL, unsureTTL) && rule.Mode != policy.PeersOnly {
		if size, held := g.size(req); size == 0 && !held { // else another answer may be sure
			return nil
		}
	}
	err := g.decide(ctx, rule, req, accepted)
	switch {
	case errors.Is(err, errUnsure):
		g.unsure.Add(pair, time.Now())
		return nil
	case err == nil:
		g.unsure.Remove(pair)
	}
	return err
}

// decide is Admit of what is not known already. It fails with errUnsure for a caller who may be given what the source
// gives itself, and nothing else.
func (g *Gate) decide(ctx context.Context, rule policy.Rule, req Request, accepted bool) error {
	if accepted {
		return g.prove(ctx, rule, req)
	}
	if g.Silent(req.Source, req.Credentials) &&
		g.Offline(ctx, rule, req.Source, req.Credentials, content.ErrUnavailable) == nil && g.knows(ctx, req) {
		return nil
	}
	err := g.ask(ctx, rule, req)
	switch {
	case err == nil:
		return g.prove(ctx, rule, req)
	case Unanswered(err): // only who may read what is known is told, by what he is given, whether this is
		if refused := g.Offline(ctx, rule, req.Source, req.Credentials, err); refused != nil {
			return refused
		}
		if g.knows(ctx, req) {
			return nil
		}
	case errors.Is(err, errOther) && g.Offline(ctx, rule, req.Source, req.Credentials, err) == nil && g.knows(ctx, req):
		return nil // to whom it has given this before, a page in its place is an outage
	case errors.Is(err, errUnsure):
		return g.makeSure(ctx, rule, req)
	}
	return err
}

// makeSure decides about a caller to whom the source said a yes that may be about anything: by a sample, which the
// source gives in the caller's name, of what others hold. It fails with errUnsure where there is nothing to sample, and
// where the source gives something else: the caller's answer does not tell one from the other.
func (g *Gate) makeSure(ctx context.Context, rule policy.Rule, req Request) error {
	if g.sample(ctx, req) != nil {
		return errUnsure
	}
	g.Confirm(ctx, rule, req)
	return nil
}

// size is how long the content is, by what this node holds, or else by a manifest of the source, which may be wrong. 0:
// not known.
func (g *Gate) size(req Request) (n int64, held bool) {
	if n, held = g.opts.Cache.Has(req.Digest); held {
		return n, true
	}
	n, _ = g.claimed.Get(req.Source.Owner(), g.thing(req.Source, req.Digest))
	return n, false
}

// sure returns nil where a yes is about the content, by the size that it names.
func (g *Gate) sure(req Request, size int64) error {
	switch known, held := g.size(req); {
	case size < 0, size == known && (held || known > 0):
		return nil
	case held:
		return errOther
	default:
		return errUnsure
	}
}

// ask puts the request to its source, once for all who ask the same at that time, and remembers the answer. Where the
// source throttles, what anyone could read a while ago is let pass.
func (g *Gate) ask(ctx context.Context, rule policy.Rule, req Request) error {
	put := func(ctx context.Context) error {
		size, err := req.Upstream.Ask(ctx)
		if err == nil {
			err = g.sure(req, size)
		}
		switch {
		case err == nil:
			g.Confirm(ctx, rule, req)
		case Unanswered(err):
			g.Unheard(ctx, req.Source, req.Credentials)
		default:
			g.Refused(req.Source, req.Credentials, err)
		}
		return err
	}
	err := g.await(ctx, "ask", req, func(ctx context.Context) error { return g.question(ctx, req.Upstream, put) })
	if content.Throttled(err) {
		return g.Throttled(ctx, rule, req.Source, req.Credentials, err)
	}
	return err
}

// Throttled decides in the source's place while it throttles; cause is its answer.
func (g *Gate) Throttled(ctx context.Context, rule policy.Rule, source Source, credentials string, cause error) error {
	if g.Accepts(rule, source, credentials) ||
		time.Since(g.publicAt(source)) < ThrottledPublic && g.HeardPublic(ctx, source) {
		return nil
	}
	return cause
}

// await runs do, which puts a question, within the gate's time, once for all who ask the same, and goes on with it when
// the caller leaves. A source that lets anyone read counts as silent after a shorter wait, where its content may be had
// without it; do goes on then.
func (g *Gate) await(ctx context.Context, what string, req Request, do func(context.Context) error) error {
	mark := g.mark(what+req.Digest.String(), req.Source, req.Credentials)
	key := string(mark[:])
	done := g.questions.Put(ctx, key, func(ctx context.Context) (any, error) {
		ctx, end := g.own(ctx, g.opts.Timeout*longest)
		defer end()
		return nil, do(ctx)
	})
	enough, stop := g.impatience(ctx, req, key)
	defer stop()
	var err error
	select {
	case r := <-done:
		err = r.Err
	case <-enough:
		g.Silence(req.Source, req.Credentials)
		err = fmt.Errorf("no answer within %s: %w", Hedge, content.ErrUnavailable)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("ask upstream about %s of %s: %w", req.Digest, req.Source, err)
}

// Timeout bounds one question to a source where a caller waits for firstByte: it leaves time to answer without the
// source.
func Timeout(firstByte time.Duration) time.Duration { return firstByte * 4 / 5 }

// question puts a question to a source, which counts as silent when the gate's time has gone by without an answer and
// without a byte from where it is: on a link that is full its answer waits behind other bytes.
func (g *Gate) question(ctx context.Context, u Upstream, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	waiting := content.WaitingOf(ctx)
	go func() {
		for seen, moved := u.Arrived(), waiting.SoFar(); content.Sleep(ctx, g.opts.Timeout/looks); {
			switch n, now := u.Arrived(), waiting.SoFar(); {
			case n != seen:
				seen, moved = n, now
			case now-moved >= g.opts.Timeout:
				cancel(errSilent)
				return
			}
		}
	}()
	err := do(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		return fmt.Errorf("no answer within %s: %w: %w", g.opts.Timeout, content.ErrUnavailable, err)
	}
	return err
}

// own returns a context for a question that goes on when the caller has left: until its time is over or Close ends it.
// The question calls cancel.
func (g *Gate) own(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	g.running.Add(1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	stop := context.AfterFunc(g.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		g.running.Done()
	}
}

// impatience returns a channel that is closed when a source has been waited for long enough, by the question of key,
// whose content may be had without its word. It is never closed for others. The caller calls stop.
func (g *Gate) impatience(ctx context.Context, req Request, key string) (enough chan struct{}, stop func()) {
	enough = make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		if g.questions.Lasts(ctx, key) && g.HeardPublic(ctx, req.Source) && g.knows(ctx, req) {
			close(enough)
		}
	}()
	return enough, cancel
}

// Unanswered reports whether err is for want of an answer. An answer about the caller, about the content or about the
// rate of requests is none such.
func Unanswered(err error) bool {
	return !content.Throttled(err) &&
		(errors.Is(err, content.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded))
}

// Silence notes that the source did not answer a question about this caller.
func (g *Gate) Silence(source Source, credentials string) {
	g.silences.Add(source.Owner(), g.caller(source, credentials), time.Now())
}

// Silent reports whether the source did not answer about this caller a moment ago.
func (g *Gate) Silent(source Source, credentials string) bool {
	at, ok := g.silences.Get(source.Owner(), g.caller(source, credentials))
	return ok && time.Since(at) < silenceTTL
}

// Accepts reports whether the source accepted these credentials within the policy's time.
func (g *Gate) Accepts(rule policy.Rule, source Source, credentials string) bool {
	if rule.Authorization.Mode == policy.Exempt {
		return true
	}
	at, ok := g.yeses(credentials).Get(source.Owner(), g.caller(source, credentials))
	return ok && time.Since(at) < rule.Authorization.TTL
}

// Offline decides in the source's place while it does not answer; cause is why. Where a caller may be let on once he
// shows the credentials that the source asked for earlier, he gets that challenge: a runtime then presents its pull
// secret. Of a Bearer challenge that would be useless, because the token server gives another token each time, if it
// can be asked at all.
func (g *Gate) Offline(ctx context.Context, rule policy.Rule, source Source, credentials string, cause error) error {
	if rule.Authorization.Mode == policy.Exempt {
		return nil
	}
	if rule.Authorization.OnUnreachable != policy.Remembered {
		return fmt.Errorf("the policy denies %s while it cannot be asked: %w", source, cause)
	}
	// Who may read without credentials may read with any.
	if g.Remembers(rule, source, credentials) || g.HeardPublic(ctx, source) {
		return nil
	}
	if challenge, ok := g.challenge(source); ok && credentials == "" {
		return &content.UpstreamError{
			Op: "while upstream cannot be asked: " + cause.Error(), Status: http.StatusUnauthorized,
			Challenge: challenge,
		}
	}
	return cause
}

// challenge is what the source asked of callers without credentials. Of one that is known to accept some it is what its
// registry last asked for any, where made-up names have pushed out its own.
func (g *Gate) challenge(source Source) (challenge []string, ok bool) {
	challenge, ok = g.challenges.Get(source.Owner(), source)
	if !ok && g.accepted.Contains(g.nobody(source)) {
		challenge, ok = g.challenges.Get(source.Owner(), sibling(source))
	}
	return challenge, ok
}

// sibling stands for any source of the same registry.
func sibling(source Source) Source { return Source("any " + source.Owner().Narrow) }

// Remembers reports whether the source once accepted these credentials, where the policy goes by that while the source
// cannot be asked. Who shows none is let on only where anyone may read, of which this tells nothing.
func (g *Gate) Remembers(rule policy.Rule, source Source, credentials string) bool {
	return rule.Authorization.Mode == policy.Exempt || rule.Authorization.OnUnreachable == policy.Remembered &&
		credentials != "" && g.yeses(credentials).Contains(g.caller(source, credentials))
}

// Public reports whether the source lets anyone read, without credentials or with a token that it gives to anyone, as
// this node has seen last.
func (g *Gate) Public(source Source) bool {
	yes := g.publicAt(source)
	return !yes.IsZero() && !yes.Before(g.refusedAt(source))
}

// HeardPublic is Public by what other nodes have seen, too. The newest counts. What others have seen opens nothing of
// which this node has seen itself that it is shut. Where any of them has, a later yes counts once two have seen one: a
// node that was taken over may say anything, and is one. Where nobody has, the word of one is enough, so that a node
// which has never asked serves what others may.
func (g *Gate) HeardPublic(ctx context.Context, source Source) bool {
	yes, no := g.publicAt(source), g.refusedAt(source)
	if yes.Before(no) {
		return false
	}
	return g.hear(ctx, source, "").opens(yes, no)
}

// publicAt is when this node has last seen that the source lets anyone read; the zero time: never.
func (g *Gate) publicAt(source Source) time.Time {
	return latest(source, g.accepted, g.caller(source, ""), g.everyone(source))
}

// refusedAt is when this node has last seen that the source refuses whoever comes; the zero time: never.
func (g *Gate) refusedAt(source Source) time.Time {
	nobody := g.nobody(source)
	at := latest(source, g.accepted, nobody)
	if other := latest(source, g.refused, nobody); other.After(at) {
		return other
	}
	return at
}

// latest is when the source last said what is remembered under one of the marks.
func latest(source Source, said *lru.Fair[mark, time.Time], marks ...mark) (last time.Time) {
	for _, who := range marks {
		if at, _ := said.Get(source.Owner(), who); at.After(last) {
			last = at
		}
	}
	return last
}

// Confirm remembers that the source accepted the caller, and that it claims the content, where the request names one.
func (g *Gate) Confirm(ctx context.Context, rule policy.Rule, req Request) {
	caller := g.caller(req.Source, req.Credentials)
	g.silences.Remove(caller)
	news := note(g.yeses(req.Credentials), req.Source, caller)
	switch nobody := g.nobody(req.Source); {
	case req.Credentials == "":
		g.refused.Remove(nobody)
		g.accepted.Remove(nobody)
	case g.refused.Contains(nobody): // it has been asked by more than made-up names
		g.accepted.Add(req.Source.Owner(), nobody, latest(req.Source, g.refused, nobody))
		g.refused.Remove(nobody)
	}
	if req.Digest != "" {
		if thing := g.thing(req.Source, req.Digest); !g.claimed.Contains(thing) {
			g.claimed.Add(req.Source.Owner(), thing, 0)
		}
		g.askForAnyone(ctx, rule, req)
	}
	if news {
		g.saveSoon()
	}
}

// Accept remembers that the source accepted these credentials at a time in the past, as a front has found out in its
// own way or has heard from another node.
func (g *Gate) Accept(source Source, credentials string, at time.Time) {
	who := g.caller(source, credentials)
	yeses := g.yeses(credentials)
	last, known := yeses.Get(source.Owner(), who)
	if known && !last.Before(at) {
		return
	}
	g.silences.Remove(who)
	yeses.Add(source.Owner(), who, at)
	if !known {
		g.saveSoon()
	}
}

// note remembers what a source has said of someone just now, and reports whether it was news.
func note(said *lru.Fair[mark, time.Time], source Source, who mark) (news bool) {
	news = !said.Contains(who)
	said.Add(source.Owner(), who, time.Now())
	return news
}

// Refused forgets an earlier acceptance when err is a refusal.
func (g *Gate) Refused(source Source, credentials string, err error) {
	if !content.Denied(err) {
		return
	}
	g.yeses(credentials).Remove(g.caller(source, credentials))
	up, ok := errors.AsType[*content.UpstreamError](err)
	if ok && len(up.Challenge) > 0 && strings.HasPrefix(strings.ToLower(up.Challenge[0]), "basic") &&
		len(strings.Join(up.Challenge, "")) <= maxChallenge {
		for _, of := range []Source{source, sibling(source)} {
			g.challenges.Add(source.Owner(), of, up.Challenge)
		}
		// Where tokens are given to anyone, who comes without one is refused all the same.
		if credentials == "" {
			where := g.refused
			if g.accepted.Contains(g.nobody(source)) {
				where = g.accepted
			}
			g.shut(source, where)
		}
	}
}

// askForAnyone finds out whether the source lets anyone read what it has let the caller of req read, with a token for
// which no credentials are asked. A Bearer token lives a few minutes: in an outage callers come with another one or,
// since the token server is away too, with none, and all that can be said of them then is what anyone may read. The
// caller does not wait for it.
func (g *Gate) askForAnyone(ctx context.Context, rule policy.Rule, req Request) {
	if !bearer(req.Credentials) || rule.Authorization.OnUnreachable != policy.Remembered ||
		!g.dueForAnyone(req.Source) {
		return
	}
	g.running.Go(func() {
		if g.asking.Acquire(g.ctx, 1) != nil { //nolint:contextcheck // the question goes on when its caller has gone
			return
		}
		defer g.asking.Release(1)
		ctx, cancel := g.own(ctx, g.opts.Timeout)
		defer cancel()
		size, err := req.Upstream.AskForAnyone(ctx)
		if err == nil {
			err = g.sure(req, size)
		}
		if errors.Is(err, errUnsure) || Unanswered(err) || content.Throttled(err) {
			return
		}
		g.anyone.Add(req.Source, time.Now().Add(max(rule.Authorization.TTL, anyonePause)))
		if err != nil { // it has become private, if it ever was not
			g.shut(req.Source, g.accepted)
		} else if note(g.accepted, req.Source, g.everyone(req.Source)) {
			g.accepted.Remove(g.nobody(req.Source))
			g.refused.Remove(g.nobody(req.Source))
			g.saveSoon()
		}
	})
}

// shut remembers that the source refuses whoever comes.
func (g *Gate) shut(source Source, where *lru.Fair[mark, time.Time]) {
	g.accepted.Remove(g.everyone(source))
	g.accepted.Remove(g.caller(source, ""))
	if note(where, source, g.nobody(source)) {
		g.saveSoon()
	}
}

// dueForAnyone reports whether it is time to ask, and notes that someone is about to.
func (g *Gate) dueForAnyone(source Source) bool {
	g.asked.Lock()
	defer g.asked.Unlock()
	now := time.Now()
	if next, ok := g.anyone.Get(source); ok && now.Before(next) {
		return false
	}
	g.anyone.Add(source, now.Add(anyonePause))
	return true
}

func bearer(credentials string) bool {
	scheme, _, _ := strings.Cut(credentials, " ")
	return strings.EqualFold(scheme, "Bearer")
}
