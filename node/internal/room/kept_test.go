package room

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestKept_WhatIsOfManyKindsHasOneBoundTogether(t *testing.T) {
	t.Parallel()
	r := New(40 << 20) // and a fourth of it for what is kept
	pages, lists := Keep[[]byte](r, "pages"), Keep[int](r, "lists")
	pages.Add("used", []byte("a"), 1<<20)
	lists.Add("too large", 1, 6<<20)
	for i := range 100 {
		lists.Add(fmt.Sprint(i), i, 1<<20)
		_, ok := pages.Get("used")
		require.True(t, ok)
		require.LessOrEqual(t, r.kept.size, int64(10<<20))
	}
	_, ok := lists.Get("too large")
	require.False(t, ok)
	_, ok = lists.Get("0")
	require.False(t, ok)
	v, ok := lists.Get("99")
	require.True(t, ok)
	require.Equal(t, 99, v)
	_, ok = pages.Get("99")
	require.False(t, ok, "each kind has names of its own")
}

// Whatever is done, what is counted is what is there.
func TestKept_CountsWhatThereIs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := newKept(10 * perKept)
		of := map[string]Shelf[int64]{"a": {k, "a"}, "b": {k, "b"}}
		shelf := func() Shelf[int64] { return of[rapid.SampledFrom([]string{"a", "b"}).Draw(t, "shelf")] }
		key := rapid.StringMatching("[xyz]")
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := rapid.Int64Range(0, 6*perKept).Draw(t, "size")
				shelf().Add(key.Draw(t, "key"), n, n)
			},
			"get":    func(t *rapid.T) { shelf().Get(key.Draw(t, "key")) },
			"remove": func(t *rapid.T) { shelf().Remove(key.Draw(t, "key")) },
			"": func(t *rapid.T) {
				n := int64(0)
				for _, w := range k.all.Values() {
					n += w.value.(int64) + 1 + perKept
				}
				if n != k.size || n > k.most {
					t.Fatalf("%d bytes are kept, counted as %d of %d", n, k.size, k.most)
				}
			},
		})
	})
}
