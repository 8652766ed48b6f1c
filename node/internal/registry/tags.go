package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/room"
)

const maxTags = 8 << 10

// tags turns tags into descriptors: from what the registry answered within the policy's TTL, else by asking it, else,
// while it does not answer, from what this node or the swarm remembers.
type tags struct {
	upstream  Upstream
	timeout   time.Duration
	memory    TagMemory // may be nil
	documents *room.Room
	gate      *gate.Gate
	metrics   *metrics
	log       *slog.Logger
	recent    *lru.Fair[string, answer]
	questions gate.Questions
	ctx       context.Context // ends with close
	end       context.CancelFunc
	running   sync.WaitGroup // questions that may outlive who asked
}

type answer struct {
	desc  v1.Descriptor
	at    time.Time
	told  *sync.Once // has the TagMemory remember it
	stale bool       // the registry could not be asked
}

func newTags(upstream Upstream, timeout time.Duration, memory TagMemory, documents *room.Room, g *gate.Gate,
	m *metrics, log *slog.Logger) *tags {
	t := &tags{
		upstream: upstream, timeout: timeout, memory: memory, documents: documents, gate: g, metrics: m, log: log,
		recent: lru.NewFair[string, answer](maxTags),
	}
	t.ctx, t.end = context.WithCancel(context.Background())
	return t
}

// close ends the questions that run.
func (t *tags) close() {
	t.end()
	t.running.Wait()
}

// question is one for a tag.
type question struct {
	key           string // of the answer
	repo          content.Repository
	tag           string
	accept        []string
	authorization string
	rule          policy.Rule
}

func (q question) source() gate.Source { return gate.Repository(q.repo) }

func (t *tags) question(x *exchange) question {
	q := question{
		repo: x.route.repo, tag: x.route.tag, accept: acceptOf(x), authorization: x.Authorization(), rule: x.rule,
	}
	q.key = questionKey(q.repo, q.tag, q.accept)
	return q
}

// resolve gives the answer for a tag. Success means that the registry has accepted the caller, now or
// earlier. Whether it has what the descriptor names is for the gate to say.
func (t *tags) resolve(ctx context.Context, q question) (answer, error) {
	last, known := t.recent.Get(q.source().Owner(), q.key)
	if known && time.Since(last.at) < q.rule.TagTTL && t.gate.Accepts(q.rule, q.source(), q.authorization) {
		return last, nil
	}
	if t.gate.Silent(q.source(), q.authorization) {
		if old, err := t.recall(ctx, q, content.ErrUnavailable); err == nil {
			return old, nil
		}
	}
	got, err := t.await(ctx, q)
	switch {
	case err == nil:
		return got, nil
	case content.Throttled(err), gate.Unanswered(err), content.Denied(err) &&
		q.rule.Authorization.Mode == policy.Exempt:
		return t.recall(ctx, q, err)
	}
	return answer{}, err
}

// await puts the question to the registry, once for all callers with the same credentials. After a moment of its
// silence it answers from memory, where anyone may read, as this node or another knows, and something is remembered.
// The registry's answer is taken note of then, too.
func (t *tags) await(ctx context.Context, q question) (answer, error) {
	key := q.authorization + "\x00" + q.key
	done := t.questions.Put(ctx, key, func(ctx context.Context) (any, error) {
		t.running.Add(1)
		defer t.running.Done()
		ctx, leave := t.documents.Lease(ctx)
		defer leave()
		ctx, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		defer context.AfterFunc(t.ctx, cancel)() //nolint:contextcheck // the front's end ends the question too
		return t.ask(ctx, q)
	})
	silent := make(chan struct{}, 1)
	hedge, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		// Others may have to be asked who may read, and the registry may answer meanwhile.
		if t.questions.Lasts(hedge, key) && t.gate.HeardPublic(ctx, q.source()) {
			silent <- struct{}{}
		}
	}()
	for {
		select {
		case r := <-done:
			if r.Err != nil {
				return answer{}, fmt.Errorf("resolve %s:%s: %w", q.repo, q.tag, r.Err)
			}
			return r.Val.(answer), nil
		case <-ctx.Done():
			return answer{}, fmt.Errorf("resolve %s:%s: %w", q.repo, q.tag, context.Cause(ctx))
		case <-silent:
			cause := fmt.Errorf("no answer within %s: %w", gate.Hedge, content.ErrUnavailable)
			if old, err := t.recall(ctx, q, cause); err == nil {
				t.gate.Silence(q.source(), q.authorization)
				return old, nil
			}
		}
	}
}

// ask puts the question to the registry, and remembers what it says.
func (t *tags) ask(ctx context.Context, q question) (answer, error) {
	desc, err := t.upstream.Resolve(ctx, q.repo, q.tag, q.accept, q.authorization)
	got := answer{desc: desc, at: time.Now(), told: new(sync.Once)}
	switch {
	case err == nil:
		t.recent.Add(q.source().Owner(), q.key, got)
		t.gate.Confirm(ctx, q.rule, gate.Blob(t.upstream, content.Request{
			Repository: q.repo, Kind: content.Manifest, Digest: desc.Digest, Authorization: q.authorization,
		}))
	case gate.Unanswered(err):
		t.gate.Unheard(ctx, q.source(), q.authorization)
	default:
		if errors.Is(err, content.ErrNotFound) {
			t.recent.Remove(q.key)
		}
		t.gate.Refused(q.source(), q.authorization, err)
	}
	return got, err
}

// tell has other nodes hear what the registry answered. They do not before its manifest was had: a registry that was
// wrong for a moment would mislead them, and this node, while it is away.
func (t *tags) tell(ctx context.Context, q question, d digest.Digest) {
	last, known := t.recent.Get(q.source().Owner(), q.key)
	if t.memory != nil && known && last.desc.Digest == d {
		last.told.Do(func() { t.memory.Remember(ctx, q.repo, q.tag, last.desc) })
	}
}

// forget drops an answer of which the manifest is not to be had.
func (t *tags) forget(q question, d digest.Digest) {
	if last, known := t.recent.Get(q.source().Owner(), q.key); known && last.desc.Digest == d {
		t.recent.Remove(q.key)
	}
}

// recall answers from memory, where this node's own last answer is known or the swarm has one, and where the policy
// lets this caller on without asking. cause is why the registry does not answer.
func (t *tags) recall(ctx context.Context, q question, cause error) (answer, error) {
	allowed := func() error { return t.gate.Offline(ctx, q.rule, q.source(), q.authorization, cause) }
	if content.Throttled(cause) {
		allowed = func() error { return t.gate.Throttled(ctx, q.rule, q.source(), q.authorization, cause) }
	}
	if err := allowed(); err != nil {
		return answer{}, err
	}
	last, known := t.recent.Get(q.source().Owner(), q.key)
	if t.memory != nil {
		if desc, at, ok := t.memory.Recall(ctx, q.repo, q.tag); ok {
			last, known = answer{desc: desc, at: at}, true
		}
	}
	if !known {
		return answer{}, cause
	}
	last.stale = true
	t.metrics.stale.Inc()
	t.log.Warn("tag answered from memory", "repository", q.repo, "tag", q.tag, "digest", last.desc.Digest, "cause",
		cause)
	return last, nil
}

// questionKey names what is asked of a registry, in few bytes whatever the client sends. A registry may answer
// differently by what the client accepts, so answers are kept apart by it.
func questionKey(repo content.Repository, what string, accept []string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %q %q", repo, what, accept))
	return string(sum[:])
}

// acceptOf is the exchange's Accept header as a sorted set.
func acceptOf(x *exchange) []string {
	var types []string
	for _, line := range x.R.Header.Values("Accept") {
		for t := range strings.SplitSeq(line, ",") {
			if t = strings.TrimSpace(t); t != "" {
				types = append(types, t)
			}
		}
	}
	slices.Sort(types)
	return slices.Compact(types)
}
