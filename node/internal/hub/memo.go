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
	// Recall hands to take what connected peers have, however old, one value of each, one after the other. It takes at
	// most about a second.
	Recall(ctx context.Context, key string, take func(value []byte, age time.Duration))
	// Sign signs a statement in this node's name.
	Sign(statement []byte) (by, signature []byte, err error)
	// Signed reports whether a node that is admitted has signed a statement.
	Signed(by, statement, signature []byte) bool
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
	// maxOthers is how many records are kept that others have told, and maxLately how many that others remember.
	maxOthers = 16 << 10
	maxLately = 4 << 10
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
	// Vouched is who has this from the hub itself.
	Vouched vouchers `json:"vouched,omitempty"`

	// heard: one other node remembers it so, or has told it, and nobody else; see vouch.go.
	heard bool
}

type remembered struct {
	record record
	at     time.Time
	saved  time.Time // what of at is on disk; zero: nothing
	told   time.Time // when another node said so; zero: it is more than the word of one
}

// memo remembers what the hub said, and asks it what it does not know: once for all callers of this node, and for all
// nodes once, or twice where it takes the word of two (see vouch.go).
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
	others *lru.Cache[string, remembered] // what others have told, for others: this node does not go by it
	lately *lru.Cache[string, remembered] // what came of asking others while the hub was away
	inline room.Shelf[[]byte]             // short documents and files, handed on with their records; recent's hold none
}

func newMemo(memory Memory, documents *room.Room, log *slog.Logger) *memo {
	m := &memo{
		memory: memory, room: documents, log: log, secret: make([]byte, sha256.Size),
		recent: lru.New[string, remembered](maxRecords), others: lru.New[string, remembered](maxOthers),
		lately: lru.New[string, remembered](maxLately), inline: room.Keep[[]byte](documents, "hub's documents"),
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
	age   time.Duration
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
		return found{record: old, age: age}, nil
	}
	if m.down() {
		rec, then, ok := old, age, known
		if !known || kindOf(key) == openKind { // others may know better who may read
			rec, then, ok = m.recall(ctx, key, old, age, known)
		}
		if ok {
			return found{record: rec, age: then, stale: true, cause: content.ErrUnavailable}, nil
		}
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
				rec, then, ok := m.recall(ctx, key, old, age, known)
				if ok && !(rec.heard && provoked(r.Err)) { // it is there, and can be asked again
					return found{record: rec, age: then, stale: true, cause: r.Err}, nil
				}
			}
			return found{}, r.Err
		case <-patience.C: // a hub that is slow may still answer: the word of one other node is not taken for it
			rec, then, ok := m.recall(ctx, key, old, age, known)
			if ok && !rec.heard && then <= hasty {
				return found{record: rec, age: then, stale: true, cause: content.ErrUnavailable}, nil
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
	rec, age, own, err := m.errand(ctx, key, key, maxAge, ask)
	if err == nil && !own && takesTwo(key) && len(m.vouched(key, rec, maxAge)) < agreed {
		rec, age, err = m.again(ctx, key, maxAge, ask, rec)
	}
	switch {
	case err != nil:
		return record{}, err
	case !own && sworn(key):
		m.swear(key, rec, age)
	default:
		m.learn(key, rec, age, true)
	}
	return rec, nil
}

// errand asks the hub for the record of key, or has another node ask it. own: this node has asked, as it does where
// what the other tells cannot be a record. For a second word nodes meet at another key.
func (m *memo) errand(ctx context.Context, key, meet string, maxAge time.Duration,
	ask func(context.Context) (record, error)) (rec record, age time.Duration, own bool, err error) {
	asked := func(ctx context.Context) (record, error) {
		own = true
		rec, err := ask(ctx)
		if err != nil {
			return record{}, err
		}
		return m.vouch(key, rec), nil
	}
	raw, age, err := m.shared.Do(ctx, meet, maxAge, func(ctx context.Context) ([]byte, error) {
		rec, err := asked(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(rec)
	})
	if err != nil {
		return record{}, 0, own, err
	}
	if own {
		err = json.Unmarshal(raw, &rec)
		return rec, age, true, err
	}
	if r, ok := toldRecord(raw, age); ok {
		return r.record, age, false, nil
	}
	m.log.Info("what another node tells cannot be a record of the hub's: the hub itself is asked", "key",
		strings.Split(key, "\x00"))
	rec, err = asked(ctx)
	return rec, 0, own, err
}

// again is ask once one other node has told a record, and nobody else. It has a second one ask.
func (m *memo) again(ctx context.Context, key string, maxAge time.Duration, ask func(context.Context) (record, error),
	first record) (record, time.Duration, error) {
	first.Vouched = m.vouched(key, first, maxAge)
	rec, age, own, err := m.errand(ctx, key, againKind+"\x00"+key, maxAge, func(ctx context.Context) (record, error) {
		rec, err := ask(ctx)
		if err == nil && same(rec, first) {
			rec.Vouched = first.Vouched
		}
		return rec, err
	})
	switch {
	case err != nil:
		if away(err) {
			m.overhear(othersKey(key), remembered{record: first, at: time.Now()}) // unless more is known
		}
		return record{}, 0, err
	case own:
		return rec, 0, nil
	case same(rec, first):
		rec.Vouched = append(rec.Vouched, first.Vouched...)
	}
	if rec.Vouched = m.vouched(key, rec, maxAge); len(rec.Vouched) >= agreed {
		return rec, age, nil
	}
	m.log.Info("other nodes do not agree on what the hub says; it is asked", "key", strings.Split(key, "\x00"))
	if rec, err = ask(ctx); err != nil {
		return record{}, 0, err
	}
	return m.vouch(key, rec), 0, nil
}

// recall gives the record that this node and others remember, and its age.
func (m *memo) recall(ctx context.Context, key string, old record, age time.Duration, known bool) (record,
	time.Duration, bool) {
	if m.shared == nil {
		return old, age, known
	}
	choose := newest
	if kindOf(key) == openKind {
		if choose = openest; known && !old.Yes {
			return old, age, true
		}
	}
	if r, ok := m.overheard(key); ok && (!known || kindOf(key) == openKind && time.Since(r.told) < age) {
		return r.record, time.Since(r.at), true
	}
	own := remembered{record: old, at: time.Now().Add(-age)}
	var told []remembered
	m.shared.Recall(ctx, key, func(value []byte, age time.Duration) {
		if r, ok := toldRecord(value, age); ok {
			told = append(told, r)
		}
	})
	best, two, ok := choose(own, known, told)
	if !ok {
		best, ok = m.overheard(othersKey(key))
	}
	then := time.Since(best.at)
	switch {
	case !ok:
		return record{}, 0, false
	case kindOf(key) == openKind && known && best.at.Equal(own.at):
		m.lately.Add(key, remembered{record: old, at: own.at, told: time.Now()})
	case kindOf(key) == blobKind, known && best.at.Equal(own.at):
	case takesTwo(key) && !two:
		best.record.heard = true
		m.overhear(key, best)
	case sworn(key):
		m.swear(key, best.record, then)
	default:
		m.learn(key, best.record, then, true)
	}
	return best.record, then, true
}

// overhear keeps, for a moment, what another node says and nobody else. Its document is a blob, too.
func (m *memo) overhear(key string, r remembered) {
	r.record.heard, r.record.Inline, r.told = true, nil, time.Now()
	m.lately.Add(key, r)
}

func (m *memo) overheard(key string) (remembered, bool) {
	r, ok := m.lately.Get(key)
	return r, ok && time.Since(r.told) < latelyTTL
}

// own is what this node itself remembers.
func (m *memo) own(key string) (record, time.Duration, bool) {
	r, ok := m.ownRecord(key)
	return r.record, max(time.Since(r.at), 0), ok
}

func (m *memo) ownRecord(key string) (remembered, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.recent.Get(key)
	if !ok {
		if r, ok = m.load(key); !ok {
			return remembered{}, false
		}
		m.recent.Add(key, r)
	}
	if !r.told.IsZero() && time.Since(r.told) >= swornTTL {
		return remembered{}, false
	}
	if b, ok := m.inline.Get(key); ok {
		r.record.Inline = b
	}
	return r, true
}

// learn remembers a record that was right age ago, on disk as well where keep says so.
func (m *memo) learn(key string, rec record, age time.Duration, keep bool) {
	m.put(key, rec, age, keep, time.Time{})
}

// swear remembers for a while what another node has said.
func (m *memo) swear(key string, rec record, age time.Duration) {
	m.put(key, rec, age, false, time.Now())
}

func (m *memo) put(key string, rec record, age time.Duration, keep bool, told time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := time.Now().Add(-age)
	m.setInline(key, rec)
	rec.Inline = nil
	now := remembered{record: rec, at: at, told: told}
	if before, known := m.recent.Peek(key); known && same(before.record, rec) {
		now.saved = before.saved
	}
	if keep && at.Sub(now.saved) >= savedAgain && m.save(key, now) {
		now.saved = at
	}
	m.recent.Add(key, now)
}

// setInline keeps a record's document, where it is short.
func (m *memo) setInline(key string, rec record) {
	if len(rec.Inline) > 0 && len(rec.Inline) <= maxInline {
		m.inline.Add(key, rec.Inline, int64(len(rec.Inline)))
	}
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
	at := content.KeptTime(k.Unix, time.Now())
	return remembered{record: k.Record, at: at, saved: at}, true
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
	m.lately.Remove(key)
	m.lately.Remove(othersKey(key))
	m.inline.Remove(key)
	for _, meet := range []string{key, againKind + "\x00" + key} {
		m.others.Remove(meet)
		m.inline.Remove(othersKey(meet))
	}
	if m.memory != nil {
		_ = m.memory.Delete(key) // it is asked for again, and replaced, if it stays
	}
}

// known, remembers and told are the swarm's side of the memo. known is what this node answers others who ask together,
// by what it has from the hub or what another has told it for all. remembers is what it answers who ask while the hub
// is away: that is not another's word. What is told is kept in memory only, and only what is short.
func (m *memo) known(meet string) (value []byte, age time.Duration, ok bool) {
	key, second := strings.CutPrefix(meet, againKind+"\x00")
	mine, has := m.ownRecord(key)
	need := 0 // of signatures, for this node's own to be of use: without any it would be in the way of one with them
	switch {
	case second:
		need = agreed
	case takesTwo(key):
		need = 1
	}
	has = has && len(mine.record.Vouched) >= need
	m.mu.Lock()
	told, hasTold := m.others.Get(meet)
	if b, ok := m.inline.Get(othersKey(meet)); ok {
		told.record.Inline = b
	}
	m.mu.Unlock()
	if hasTold && (!has || told.at.After(mine.at)) {
		return valueOf(told, true)
	}
	return valueOf(mine, has)
}

func (m *memo) remembers(key string) (value []byte, age time.Duration, ok bool) {
	r, ok := m.ownRecord(key)
	return valueOf(r, ok && r.told.IsZero())
}

func valueOf(r remembered, ok bool) (value []byte, age time.Duration, has bool) {
	if !ok {
		return nil, 0, false
	}
	raw, err := json.Marshal(r.record)
	return raw, max(time.Since(r.at), 0), err == nil
}

func (m *memo) told(meet string, value []byte, age time.Duration) {
	r, ok := toldRecord(value, age)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setInline(othersKey(meet), r.record)
	r.record.Inline = nil
	m.others.Add(meet, r)
}

// toldRecord is a record that another node tells, which must be short.
func toldRecord(value []byte, age time.Duration) (r remembered, ok bool) {
	r.at = time.Now().Add(-age)
	return r, json.Unmarshal(value, &r.record) == nil && bytesOf(r.record) <= maxTold
}

// othersKey is under what key the document of a record is kept that another node has told.
func othersKey(meet string) string { return "told\x00" + meet }
