package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

const maxTags = 8 << 10

// tags turns tags into descriptors: from what the registry answered within the policy's TTL, else by asking it, else,
// while it cannot be asked, from what this node or the swarm remembers.
type tags struct {
	upstream  Upstream
	timeout   time.Duration
	memory    TagMemory // may be nil
	gate      *gate
	metrics   *metrics
	log       *slog.Logger
	recent    *lru.Cache[string, answer]
	questions singleflight.Group
}

type answer struct {
	desc v1.Descriptor
	at   time.Time
}

func newTags(upstream Upstream, timeout time.Duration, memory TagMemory, gate *gate, m *metrics, log *slog.Logger) *tags {
	recent, err := lru.New[string, answer](maxTags)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return &tags{upstream: upstream, timeout: timeout, memory: memory, gate: gate, metrics: m, log: log, recent: recent}
}

// resolve gives the descriptor of the exchange's tag. Success means that the caller may read it.
func (t *tags) resolve(ctx context.Context, x *exchange) (v1.Descriptor, error) {
	repo, tag, authorization := x.route.repo, x.route.tag, x.authorization()
	accept := acceptOf(x)
	// A registry may answer a tag differently by what the client accepts, so answers are kept apart by it.
	key := strings.Join(append([]string{repo.String() + ":" + tag}, accept...), " ")
	last, known := t.recent.Get(key)
	if known && time.Since(last.at) < x.rule.TagTTL && t.gate.accepts(x.rule, repo, authorization) {
		return last.desc, nil
	}
	if t.gate.outage(repo) {
		if desc, err := t.recall(ctx, x, last.desc, known, content.ErrUnavailable); err == nil {
			return desc, nil
		}
	}
	desc, err := t.ask(ctx, key, repo, tag, accept, authorization)
	switch {
	case err == nil:
		t.recent.Add(key, answer{desc, time.Now()})
		t.gate.confirm(ctx, x.rule, content.Request{
			Repository: repo, Kind: content.Manifest, Digest: desc.Digest, Authorization: authorization,
		})
		if t.memory != nil {
			t.memory.Remember(ctx, repo, tag, desc)
		}
		return desc, nil
	case unreachable(err):
		t.gate.outages.Add(repo.Registry, time.Now())
		return t.recall(ctx, x, last.desc, known, err)
	case content.Denied(err) && x.rule.Authorization == policy.Exempt:
		return t.recall(ctx, x, last.desc, known, err)
	case errors.Is(err, content.ErrNotFound):
		t.recent.Remove(key)
	}
	t.gate.refused(repo, authorization, err)
	return v1.Descriptor{}, err
}

// recall answers from memory, where this node's own last answer is known or the swarm has one, and where the policy lets
// this caller on without asking. cause is why the registry does not answer.
func (t *tags) recall(ctx context.Context, x *exchange, last v1.Descriptor, known bool, cause error) (v1.Descriptor, error) {
	repo, tag := x.route.repo, x.route.tag
	if t.memory != nil {
		if desc, ok := t.memory.Recall(ctx, repo, tag); ok {
			last, known = desc, true
		}
	}
	if !known {
		return v1.Descriptor{}, cause
	}
	if err := t.gate.offline(ctx, x.rule, repo, x.authorization(), cause); err != nil {
		return v1.Descriptor{}, err
	}
	t.gate.enroll(listed, repo, last.Digest) // the registry said so once, maybe to another node
	t.metrics.stale.Inc()
	t.log.Warn("tag answered from memory", "repository", repo, "tag", tag, "digest", last.Digest, "cause", cause)
	return last, nil
}

// ask sends one question upstream for all callers with the same credentials.
func (t *tags) ask(ctx context.Context, key string, repo content.Repository, tag string, accept []string, authorization string) (v1.Descriptor, error) {
	caller := t.gate.caller(repo, authorization)
	done := t.questions.DoChan(string(caller[:])+key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.timeout)
		defer cancel()
		return t.upstream.Resolve(ctx, repo, tag, accept, authorization)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return v1.Descriptor{}, fmt.Errorf("resolve %s:%s: %w", repo, tag, r.Err)
		}
		return r.Val.(v1.Descriptor), nil
	case <-ctx.Done():
		return v1.Descriptor{}, fmt.Errorf("resolve %s:%s: %w", repo, tag, context.Cause(ctx))
	}
}

// acceptOf is the exchange's Accept header as a sorted set.
func acceptOf(x *exchange) []string {
	var types []string
	for _, line := range x.r.Header.Values("Accept") {
		for t := range strings.SplitSeq(line, ",") {
			if t = strings.TrimSpace(t); t != "" {
				types = append(types, t)
			}
		}
	}
	slices.Sort(types)
	return slices.Compact(types)
}
