package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

func TestMemo_WhereTheHubsAnswerIsNotHadAnOlderOneWillDo(t *testing.T) {
	t.Parallel()
	other := errors.New("it is no JSON")
	for name, tc := range map[string]struct {
		err   error
		known bool
		stale bool
	}{
		"the hub is away":                             {fmt.Errorf("GET: %w", content.ErrUnavailable), true, true},
		"there is no room for its answer":             {fmt.Errorf("GET: %w", room.ErrFull), true, true},
		"there is no room, and nothing older":         {fmt.Errorf("GET: %w", room.ErrFull), false, false},
		"its answer makes no sense, which is its own": {other, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemo(nil, room.New(1<<20), slog.New(slog.DiscardHandler))
				m.down = func() bool { return false }
				older := record{Commit: "a"}
				if tc.known {
					m.learn("k", older, time.Hour, false)
				}
				got, err := m.do(t.Context(), "k", time.Minute, mark{}, func(context.Context) (record, error) {
					return record{}, tc.err
				})
				if !tc.stale {
					require.ErrorIs(t, err, tc.err)
					return
				}
				require.NoError(t, err)
				require.Equal(t, found{record: older, age: time.Hour, stale: true, cause: tc.err}, got)
			})
		})
	}
}

// notebook is a Memory that survives a memo.
type notebook map[string][]byte

func (n notebook) Get(key string) ([]byte, bool) { v, ok := n[key]; return v, ok }
func (n notebook) Put(key string, v []byte) error {
	n[key] = v
	return nil
}

func (n notebook) Delete(key string) error {
	delete(n, key)
	return nil
}

// An agent often begins before its machine has learned the time. What it noted by then would be of now after each
// restart.
func TestMemo_WhatWasNotedByAClockThatWasAheadIsAskedForAgainOnceThatIsSetBack(t *testing.T) {
	t.Parallel()
	notes := notebook{}
	open := func() *memo {
		m := newMemo(notes, room.New(1<<20), slog.New(slog.DiscardHandler))
		m.down = func() bool { return false }
		return m
	}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(24 * time.Hour)
		open().learn("k", record{Commit: "old"}, 0, true)
	})
	synctest.Test(t, func(t *testing.T) { // whose clock begins where that of the first did
		m := open()
		get := func(commit string, err error) found {
			got, err := m.do(t.Context(), "k", time.Hour, mark{}, func(context.Context) (record, error) {
				return record{Commit: commit}, err
			})
			require.NoError(t, err)
			return got
		}
		got := get("", fmt.Errorf("GET: %w", content.ErrUnavailable))
		require.Equal(t, "old", got.Commit, "it is not forgotten where the hub is away")
		require.True(t, got.stale)
		require.Equal(t, "new", get("new", nil).Commit)
	})
}

// teller is another node that has a value of every key.
type teller struct {
	Shared
	value []byte
}

func (s teller) Do(context.Context, string, time.Duration, func(context.Context) ([]byte, error)) ([]byte,
	time.Duration, error) {
	return s.value, 0, nil
}

func (teller) Sign([]byte) (by, signature []byte, err error) {
	return []byte("me"), []byte("mine"), nil
}
func (teller) Signed(_, _, _ []byte) bool { return true }

// Such are kept by the ten thousands, and of each as much as a message of the swarm's is long.
func TestMemo_WhatAnotherNodeTellsIsTakenOnlyWhereItIsShort(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 100<<10)
	words := vouchers{{Unix: time.Now().Unix(), By: []byte("one")}, {Unix: time.Now().Unix(), By: []byte("two")}}
	for sentence, tc := range map[string]struct {
		told  record
		taken bool
	}{
		"a commit by its name":          {record{Commit: "a1", Vouched: words}, true},
		"with a short document":         {record{Commit: "a1", Inline: []byte(long), Vouched: words}, true},
		"a commit with a long name":     {record{Commit: long, Vouched: words}, false},
		"a digest as long":              {record{Commit: "a1", Digest: digest.Digest(long), Vouched: words}, false},
		"a next page as long":           {record{Commit: "a1", Next: long, Vouched: words}, false},
		"a place as long":               {record{Commit: "a1", URL: long, Vouched: words}, false},
		"the word of somebody, as long": {record{Commit: "a1", Vouched: append(words, voucher{By: []byte(long)})}, false},
	} {
		for _, kind := range []string{"revision", gitKind, hasKind} {
			t.Run(sentence+", of kind "+kind, func(t *testing.T) {
				t.Parallel()
				value, err := json.Marshal(tc.told)
				require.NoError(t, err)
				m := newMemo(nil, room.New(1<<20), slog.New(slog.DiscardHandler))
				m.down, m.shared = func() bool { return false }, teller{value: value}
				asked := 0
				k := key(kind, "org/m", "main")
				got, err := m.do(t.Context(), k, time.Hour, mark{}, func(context.Context) (record, error) {
					asked++
					return record{Commit: "b2"}, nil
				})
				require.NoError(t, err)
				want, questions := "b2", 1
				if tc.taken {
					want, questions = "a1", 0
				}
				require.Equal(t, want, got.Commit)
				require.Equal(t, questions, asked, "to the hub")
				kept, _, known := m.own(k)
				require.True(t, known)
				require.LessOrEqual(t, bytesOf(kept), maxTold)
			})
		}
	}
}

// Of a caller who has as much of the room as he may the others would know nothing, and they would be refused with him.
func TestMemo_WhoAsksWhatAnotherHasAskedNeedsNoneOfHisRoom(t *testing.T) {
	t.Parallel()
	type ask = func(context.Context) (record, error)
	for name, put := range map[string]func(*memo, context.Context, ask) (record, error){
		"of all": func(m *memo, ctx context.Context, a ask) (record, error) {
			got, err := m.do(ctx, "k", time.Minute, mark{}, a)
			return got.record, err
		},
		"by name": func(m *memo, ctx context.Context, a ask) (record, error) {
			got := <-m.once(ctx, "k", time.Minute, false, a)
			rec, _ := got.Val.(record)
			return rec, got.Err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const n = 2 << 20
				documents := room.New(30 << 20)
				greedy, another := room.For(t.Context(), "10.0.0.1"), room.For(t.Context(), "10.0.0.2")
				for range 3 {
					ctx, end := documents.Lease(greedy)
					defer end()
					require.NoError(t, room.Hold(ctx, n))
				}
				m := newMemo(nil, documents, slog.New(slog.DiscardHandler))
				m.down = func() bool { return false }
				began, first := time.Now(), make(chan error, 1)
				answer := func(ctx context.Context) (record, error) {
					return record{Commit: "a"}, room.Hold(ctx, n)
				}
				go func() {
					_, err := put(m, room.For(t.Context(), "10.0.0.1"), answer)
					first <- err
				}()
				synctest.Wait()
				require.Empty(t, first, "he alone waits")
				rec, err := put(m, another, answer)
				require.NoError(t, err)
				require.Equal(t, "a", rec.Commit)
				require.NoError(t, <-first)
				require.Zero(t, time.Since(began))
			})
		})
	}
}

// Whoever fills the room would else read on what was public once.
func TestAccess_AFullRoomMakesNothingReadableThatIsOver(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	a := newAgent(t, h, "", nil)
	r := repo{"models", "org/m"}
	full := func(context.Context, string) error { return room.ErrFull }
	for ago, open := range map[time.Duration]bool{23 * time.Hour: true, 25 * time.Hour: false} {
		a.memo.forget(openKey(r, levelFiles))
		a.memo.learn(openKey(r, levelFiles), record{Yes: true}, ago, false)
		got, err := a.access.anyone(t.Context(), r, levelFiles, time.Minute, full)
		require.NoError(t, err)
		require.Equal(t, open, got.Yes, "%s", ago)
	}
}
