package swarm

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Tags remembers the answers of upstream for tags, for when upstream is unreachable.
type Tags struct {
	swarm  *Swarm
	memory content.Memory
}

type tagRecord struct {
	Descriptor ocispec.Descriptor `json:"descriptor"`
	Unix       int64              `json:"unix"`
}

// NewTags returns the swarm's memory of tags, kept on this node in memory, and answers other nodes from it. Pulls wait
// for the memory's Put, so it should not wait for the disk.
func NewTags(s *Swarm, memory content.Memory) *Tags {
	t := &Tags{swarm: s, memory: memory}
	answer(s, "tag", t.answer)
	return t
}

func tagKey(repo content.Repository, tag string) string {
	return repo.Registry + "\x00" + repo.Name + "\x00" + tag
}

// Remember records what upstream answered now.
func (t *Tags) Remember(_ context.Context, repo content.Repository, tag string, d ocispec.Descriptor) {
	raw, err := json.Marshal(tagRecord{Descriptor: d, Unix: time.Now().Unix()})
	if err == nil {
		err = t.memory.Put(tagKey(repo, tag), raw)
	}
	if err != nil {
		t.swarm.log.Warn("tag not remembered", "repository", repo, "tag", tag, "error", err)
	}
}

// Own is the digest that this node itself was told last.
func (t *Tags) Own(repo content.Repository, tag string) (digest.Digest, bool) {
	r, ok := t.own(repo, tag)
	return r.Descriptor.Digest, ok
}

func (t *Tags) own(repo content.Repository, tag string) (tagRecord, bool) {
	var r tagRecord
	raw, ok := t.memory.Get(tagKey(repo, tag))
	ok = ok && json.Unmarshal(raw, &r) == nil
	r.Unix = content.KeptTime(r.Unix, time.Now()).Unix()
	return r, ok
}

// Recall returns the newest answer that this node or two connected peers remember. Where there is none, what one peer
// remembers will do: a peer that was taken over may name any digest, and a node that remembers something need not go by
// that. The time is that of the registry's answer. It takes at most about a second.
func (t *Tags) Recall(ctx context.Context, repo content.Repository, tag string) (ocispec.Descriptor, time.Time, bool) {
	own, known := t.own(repo, tag)
	var told []tagRecord
	askPeers(ctx, t.swarm, "tag", tagQuery{Registry: repo.Registry, Name: repo.Name, Tag: tag}, func(a tagAnswer) bool {
		if r, ok := a.record(); ok {
			told = append(told, r)
		}
		return false // another may know a newer one
	})
	best, found := newest(own, known, told)
	outcome := map[bool]string{true: "known", false: "unknown"}[found]
	t.swarm.m.tagRecalls.WithLabelValues(outcome).Inc()
	return best.Descriptor, time.Unix(best.Unix, 0), found
}

// newest chooses between this node's own record, where known, and what peers have told, each one record.
func newest(own tagRecord, known bool, told []tagRecord) (best tagRecord, found bool) {
	best, found = own, known
	slices.SortFunc(told, func(a, b tagRecord) int { return cmp.Compare(b.Unix, a.Unix) })
	for i, r := range told {
		if (!known || r.Unix > own.Unix) && slices.ContainsFunc(told[:i], r.same) { // two say so
			return r, true
		}
	}
	if !found && len(told) > 0 {
		return told[0], true
	}
	return best, found
}

func (r tagRecord) same(other tagRecord) bool {
	a, b := r.Descriptor, other.Descriptor
	return a.Digest == b.Digest && a.Size == b.Size && a.MediaType == b.MediaType
}

func (a tagAnswer) record() (tagRecord, bool) {
	d := digest.Digest(a.Digest)
	if !a.Found || d.Validate() != nil || a.Size < 0 {
		return tagRecord{}, false
	}
	// An answer from the future would never be outdone.
	unix := min(a.Unix, time.Now().Unix())
	return tagRecord{Descriptor: ocispec.Descriptor{MediaType: a.MediaType, Digest: d, Size: a.Size}, Unix: unix}, true
}

func (t *Tags) answer(q tagQuery) tagAnswer {
	r, ok := t.own(content.Repository{Registry: q.Registry, Name: q.Name}, q.Tag)
	if !ok {
		return tagAnswer{}
	}
	d := r.Descriptor
	return tagAnswer{Found: true, Digest: string(d.Digest), Size: d.Size, MediaType: d.MediaType, Unix: r.Unix}
}
