package hub

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// Shared has one node of the swarm ask for all. Its values are opaque to it.
type Shared interface {
	// Do gives the value of key that a node has and that is at most maxAge old. Where there is none it calls ask, on
	// one node at a time as far as that is possible, and gives the others what came of it. It fails only with ask's
	// error, or when ctx ends.
	Do(ctx context.Context, key string, maxAge time.Duration, ask func(context.Context) ([]byte, error)) (value []byte,
		age time.Duration, err error)
	// Recall gives the newest value that a connected peer has, however old. It takes at most about a second.
	Recall(ctx context.Context, key string) (value []byte, age time.Duration, ok bool)
}

// Memory keeps small values across restarts. No method may wait for a write to the disk: requests would wait for it.
type Memory interface {
	content.Memory
	Delete(key string) error
}

// forever is the greatest age of what never changes.
const forever = time.Duration(1<<63 - 1)

const (
	maxRecords = 64 << 10
	// maxInline is the longest document that is, so that a record fits into a message of the swarm's.
	maxInline = 256 << 10
	// maxKey is the longest key in bytes that is not replaced by its digest.
	maxKey = 1 << 10
	// maxTold is the longest record in bytes, but for its document, that is taken from another node.
	maxTold = 8 << 10
	// staleAfter is how long an answer of the hub's is waited for where something older will do.
	staleAfter = 4 * time.Second
)

// record is what is remembered under a key. Each key says which of the fields it uses.
type record struct {
	// Yes is the answer to a question that is so answered.
	Yes bool `json:"yes,omitempty"`
	// Commit is the name of the commit that a branch or tag is.
	Commit string `json:"commit,omitempty"`
	// Digest and Size name a document or file, which is a blob of the store.
	Digest digest.Digest `json:"digest,omitempty"`
	Size   int64         `json:"size,omitempty"`
	// Inline is the document itself, where it is short.
	Inline []byte `json:"inline,omitempty"`
	// Next is the escaped path and query of the page after this one.
	Next string `json:"next,omitempty"`
	// Large: there are more files than a listing of the whole is made of.
	Large bool `json:"large,omitempty"`
	// Endless is the page of a listing that comes after itself, or cannot be had.
	Endless string `json:"endless,omitempty"`
	// URL is where a file's bytes are for the moment, and Expires the Unix time at which that ends.
	URL     string `json:"url,omitempty"`
	Expires int64  `json:"expires,omitempty"`
}

type remembered struct {
	record record
	at     time.Time
	saved  time.Time // what of at is on disk; zero: nothing
}

// memo remembers what the hub said, and asks it what it does not know: once for all callers of this node, and once for
// all nodes.
type memo struct {
	shared Shared // nil: this node is alone
	room   *room.Room
	memory Memory // nil: a restart forgets
	down   func() bool
	slack  Slack
	log    *slog.Logger
	secret []byte

	asking room.Flights
	mu     sync.Mutex
	recent *lru.Cache[string, remembered]
	inline room.Shelf[[]byte] // short documents and files, handed on with their records; recent's hold none
}

func newMemo(memory Memory, documents *room.Room, log *slog.Logger) *memo {
	m := &memo{
		memory: memory, room: documents, log: log, secret: make([]byte, sha256.Size),
		recent: lru.New[string, remembered](maxRecords), inline: room.Keep[[]byte](documents, "hub's documents"),
	}
	_, _ = rand.Read(m.secret) // never fails, says crypto/rand
	return m
}

// key makes a key of its parts, which hold no zero byte: they come from URLs that were taken apart, and the front
// refuses those that hold one.
func key(parts ...string) string {
	k := strings.Join(parts, "\x00")
	if len(k) <= maxKey {
		return k
	}
	return parts[0] + "\x00" + digest.FromString(k).String() // callers choose how long a question is
}

// mark is a keyed hash, so that memory holds no tokens.
type mark [16]byte

func (m *memo) mark(parts ...string) mark {
	mac := hmac.New(sha256.New, m.secret)
	for _, p := range parts {
		_, _ = fmt.Fprintf(mac, "%d:%s", len(p), p) // a hash never fails
	}
	return mark(mac.Sum(nil)[:len(mark{})])
}

// found is a record, and whether it is older than it should be because the hub could not be asked; cause says why.
type found struct {
	record
	stale bool
	cause error
}

// do gives the record of key that is at most maxAge old, else what ask gives. While the hub cannot be asked, or there
// is no room for its answer, an older one will do. who tells callers apart in whose names ask asks.
func (m *memo) do(ctx context.Context, key string, maxAge time.Duration, who mark,
	ask func(context.Context) (record, error)) (found, error) {
	return m.doWith(ctx, key, maxAge, forever, who, ask)
}

// doWith is do where a record that is older than hasty does only once it is known why there is no answer.
func (m *memo) doWith(ctx context.Context, key string, maxAge, hasty time.Duration, who mark,
	ask func(context.Context) (record, error)) (found, error) {
	old, age, known := m.own(key)
	if known && age <= maxAge {
		return found{record: old}, nil
	}
	if known && m.down() {
		return found{record: old, stale: true, cause: content.ErrUnavailable}, nil
	}
	done := m.anew(ctx, key, maxAge, who, ask)
	patience := time.NewTimer(m.slack.of(staleAfter))
	defer patience.Stop()
	for {
		select {
		case r := <-done:
			if r.Err == nil {
				return found{record: r.Val.(record)}, nil
			}
			if away(r.Err) || errors.Is(r.Err, room.ErrFull) {
				if rec, ok := m.recall(ctx, key, old, age, known); ok {
					return found{record: rec, stale: true, cause: r.Err}, nil
				}
			}
			return found{}, r.Err
		case <-patience.C:
			rec, ok := m.recall(ctx, key, old, age, known)
			if _, now, _ := m.own(key); ok && now <= hasty {
				return found{record: rec, stale: true, cause: content.ErrUnavailable}, nil
			}
		case <-ctx.Done():
			return found{}, context.Cause(ctx)
		}
	}
}

// anew asks for a record although an older one may be known.
func (m *memo) anew(ctx context.Context, key string, maxAge time.Duration, who mark,
	ask func(context.Context) (record, error)) <-chan room.Answer {
	return m.asking.Do(ctx, string(who[:])+key, func(ctx context.Context) (any, error) {
		return m.ask(ctx, key, maxAge, ask)
	})
}

// once is anew for who is asked about by name: nobody else's answer will do. shared: that of other nodes who ask the
// same will.
func (m *memo) once(ctx context.Context, key string, maxAge time.Duration, shared bool,
	ask func(context.Context) (record, error)) <-chan room.Answer {
	if shared {
		return m.anew(ctx, key, maxAge, mark{}, ask)
	}
	return m.asking.Do(ctx, key, func(ctx context.Context) (any, error) {
		ctx, end := m.room.Lease(ctx)
		defer end()
		return ask(ctx)
	})
}

// callerKind begins the keys of what the hub says of callers. Such is kept in memory alone: what is on disk of callers
// is the gate's, by a secret key.
const callerKind = "caller"

// ask asks the hub, or has another node ask it.
func (m *memo) ask(ctx context.Context, key string, maxAge time.Duration,
	ask func(context.Context) (record, error)) (record, error) {
	ctx, end := m.room.Lease(ctx)
	defer end()
	if m.shared == nil {
		rec, err := ask(ctx)
		if err == nil {
			m.learn(key, rec, 0, true)
		}
		return rec, err
	}
	raw, age, err := m.shared.Do(ctx, key, maxAge, func(ctx context.Context) ([]byte, error) {
		rec, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(rec)
	})
	if err != nil {
		return record{}, err
	}
	var rec record
	if err := json.Unmarshal(raw, &rec); err != nil {
		return record{}, fmt.Errorf("record of another node: %w", err)
	}
	m.learn(key, rec, age, true)
	return rec, nil
}

// recall gives the newest record that this node or a peer remembers.
func (m *memo) recall(ctx context.Context, key string, old record, age time.Duration, known bool) (record, bool) {
	if m.shared == nil {
		return old, known
	}
	raw, theirs, ok := m.shared.Recall(ctx, key)
	var rec record
	if !ok || known && age <= theirs || json.Unmarshal(raw, &rec) != nil {
		return old, known
	}
	m.learn(key, rec, theirs, true)
	return rec, true
}

// own is what this node itself remembers.
func (m *memo) own(key string) (record, time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.recent.Get(key)
	if !ok {
		if r, ok = m.load(key); !ok {
			return record{}, 0, false
		}
		m.recent.Add(key, r)
	}
	if b, ok := m.inline.Get(key); ok {
		r.record.Inline = b
	}
	return r.record, max(time.Since(r.at), 0), true
}

// learn remembers a record that was right age ago, on disk as well where keep says so.
func (m *memo) learn(key string, rec record, age time.Duration, keep bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := time.Now().Add(-age)
	if len(rec.Inline) > 0 && len(rec.Inline) <= maxInline {
		m.inline.Add(key, rec.Inline, int64(len(rec.Inline)))
	}
	rec.Inline = nil
	now := remembered{record: rec, at: at}
	if before, known := m.recent.Peek(key); known && same(before.record, rec) {
		now.saved = before.saved
	}
	if keep && at.Sub(now.saved) >= savedAgain && m.save(key, now) {
		now.saved = at
	}
	m.recent.Add(key, now)
}

// savedAgain is how much older than it is a record may seem after a restart. To write each time would cost a sync of
// the disk.
const savedAgain = time.Minute

func same(a, b record) bool {
	return a.Yes == b.Yes && a.Commit == b.Commit && a.Digest == b.Digest && a.Size == b.Size && a.Next == b.Next &&
		a.Large == b.Large && a.Endless == b.Endless
}

// kept is a record on disk.
type kept struct {
	Record record `json:"record"`
	Unix   int64  `json:"unix"`
}

// load reads a record from disk.
func (m *memo) load(key string) (remembered, bool) {
	if m.memory == nil {
		return remembered{}, false
	}
	raw, ok := m.memory.Get(key)
	var k kept
	if !ok || json.Unmarshal(raw, &k) != nil {
		return remembered{}, false
	}
	at := time.Unix(min(k.Unix, time.Now().Unix()), 0)
	return remembered{k.Record, at, at}, true
}

// save writes a record to disk and reports whether it did. What is signed for a short time is a credential, and not
// kept. What is said of callers is not either.
func (m *memo) save(key string, r remembered) bool {
	if m.memory == nil || r.record.URL != "" || strings.HasPrefix(key, callerKind+"\x00") {
		return false
	}
	raw, err := json.Marshal(kept{r.record, r.at.Unix()})
	if err == nil {
		err = m.memory.Put(key, raw)
	}
	if err != nil {
		m.log.Warn("answers of the hub are not remembered across a restart", "error", err)
		return false
	}
	return true
}

// tell has the other nodes know a record that this one has found out by itself.
func (m *memo) tell(ctx context.Context, key string, rec record) {
	if m.shared == nil {
		return
	}
	raw, err := json.Marshal(rec)
	if err == nil {
		_, _, err = m.shared.Do(ctx, key, forever, func(context.Context) ([]byte, error) { return raw, nil })
	}
	if err != nil {
		m.log.Debug("other nodes are not told", "cause", err)
	}
}

// forget drops a record that turned out to be wrong.
func (m *memo) forget(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recent.Remove(key)
	m.inline.Remove(key)
	if m.memory != nil {
		_ = m.memory.Delete(key) // it is asked for again, and replaced, if it stays
	}
}

// known and told are the swarm's side of the memo: what this node answers others, and what they have found out for all.
// The latter is another's word. It is kept in memory only, and only what is short.
func (m *memo) known(key string) (value []byte, age time.Duration, ok bool) {
	rec, age, ok := m.own(key)
	if !ok {
		return nil, 0, false
	}
	raw, err := json.Marshal(rec)
	return raw, age, err == nil
}

func (m *memo) told(key string, value []byte, age time.Duration) {
	var rec record
	if json.Unmarshal(value, &rec) == nil && maxTold >=
		len(rec.Commit)+len(rec.Digest)+len(rec.Next)+len(rec.URL)+len(rec.Endless) {
		m.learn(key, rec, age, false)
	}
}
