package store

import (
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func said(unix int) []byte { return fmt.Appendf(nil, `{"unix":%d}`, unix) }

// The writer's turn stands for a disk that hangs in a sync.
func TestNotes_NobodyWaitsForADiskThatHangs(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	require.NoError(t, s.KV("n").Put("on disk", said(1)))
	require.NoError(t, s.KV("n").Put("wrong", said(1)))
	n := s.Notes("n")
	hang, err := s.state.db.Begin(true)
	require.NoError(t, err)
	require.NoError(t, n.Put("new", said(2)))
	require.NoError(t, n.Put("new", said(3)), "and again, whether the first is being written or not")
	require.NoError(t, n.Delete("wrong"))
	require.Error(t, n.Put("", nil))
	for key, want := range map[string][]byte{"on disk": said(1), "new": said(3), "wrong": nil, "never": nil} {
		got, ok := n.Get(key)
		require.Equal(t, want != nil, ok, key)
		require.Equal(t, want, got, key)
	}
	for i := range maxUnwritten + 1 {
		if err = n.Put(fmt.Sprint(i), nil); err != nil {
			break
		}
	}
	for i := maxUnwritten; err == nil && i <= 2*maxUnwritten+1; i++ { // the writer may have taken some before
		err = n.Put(fmt.Sprint(i), nil)
	}
	require.ErrorIs(t, err, content.ErrStorage, "what waits is bounded")
	require.NoError(t, hang.Rollback())
	require.NoError(t, s.Close())
	require.ErrorIs(t, n.Put("late", said(4)), content.ErrClosed)

	kv := openTest(t, Options{Path: path}).KV("n")
	got, _ := kv.Get("new")
	require.Equal(t, said(3), got)
	_, ok := kv.Get("wrong")
	require.False(t, ok)
}

func TestNotes_WhatTheDiskRefusedIsWrittenAgainWithoutAnythingNew(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.Context(), Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		n := s.Notes("n")
		s.state.broken.Store(true) // it refuses all
		require.NoError(t, n.Put("a", said(1)))
		synctest.Wait()
		s.state.broken.Store(false)
		time.Sleep(notesAgain)
		synctest.Wait()
		got, ok := s.KV("n").Get("a")
		require.True(t, ok)
		require.Equal(t, said(1), got)
		require.NoError(t, s.Close())
	})
}

func TestNotes_KeepsTheNewest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before, notes map[string][]byte
		want          []string
	}{
		"as many as may be": {
			before: map[string][]byte{"a": said(1), "b": said(2)},
			notes:  map[string][]byte{"b": said(5), "c": said(3), "d": said(4)}, want: []string{"a", "b", "c", "d"},
		},
		"one more": {
			before: map[string][]byte{"a": said(9), "b": said(2)},
			notes:  map[string][]byte{"c": said(3), "d": said(4), "e": said(1)}, want: []string{"a", "d"},
		},
		"what cannot be read goes first": {
			notes: map[string][]byte{"a": said(1), "b": []byte("{"), "c": {}, "d": said(1), "e": nil, "f": {}},
			want:  []string{"a", "d"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			s := openTest(t, Options{Path: path})
			for k, v := range test.before {
				require.NoError(t, s.KV("n").Put(k, v))
			}
			n := s.Notes("n")
			n.most = 4
			n.mu.Lock() // and the writer finds all of them at once, at the end
			maps.Copy(n.unwritten, test.notes)
			n.mu.Unlock()
			require.NoError(t, s.Close())
			kv := openTest(t, Options{Path: path}).KV("n")
			var got []string
			for _, k := range []string{"a", "b", "c", "d", "e", "f"} {
				if _, ok := kv.Get(k); ok {
					got = append(got, k)
				}
			}
			require.Equal(t, test.want, got)
		})
	}
}
