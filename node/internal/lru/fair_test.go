package lru

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestFair_WhoFloodsItPushesOutNobodyElse(t *testing.T) {
	t.Parallel()
	for name, flooder := range map[string]func(i int) Owner{
		"from one host":                      func(int) Owner { return Owner{"evil.test", "evil.test"} },
		"from many hosts of a domain":        func(i int) Owner { return Owner{"evil.test", fmt.Sprint(i)} },
		"from a host of the others' domain":  func(int) Owner { return Owner{"good.test", "evil.good.test"} },
		"from a host that is not known":      func(int) Owner { return Owner{} },
		"from many domains, a little each":   func(i int) Owner { return Owner{fmt.Sprint(i % 20), "x"} },
		"as the others, in a host of theirs": func(int) Owner { return Owner{"good.test", "b.good.test"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := NewFair[string, int](100)
			for i := range 4 {
				f.Add(Owner{"good.test", "a.good.test"}, fmt.Sprint("a", i), i)
			}
			for i := range 10_000 {
				f.Add(flooder(i), fmt.Sprint("flood", i), i)
			}
			require.Len(t, f.All(), 100)
			for i := range 4 {
				v, ok := f.Get(Owner{"good.test", "a.good.test"}, fmt.Sprint("a", i))
				require.True(t, ok)
				require.Equal(t, i, v)
			}
			require.True(t, f.Contains("flood9999"), "what is new is taken")
		})
	}
}

func TestFair_OfOnesOwnTheLeastUsedGoesFirst(t *testing.T) {
	t.Parallel()
	f := NewFair[string, int](2)
	own := Owner{"a", "a"}
	f.Add(own, "x", 1)
	f.Add(own, "y", 2)
	_, _ = f.Get(own, "x")
	f.Add(own, "z", 3)
	require.Equal(t, map[string]int{"x": 1, "z": 3}, f.All())
	f.Add(own, "x", 4)
	require.Equal(t, map[string]int{"x": 4, "z": 3}, f.All())
	require.True(t, f.Remove("x"))
	require.False(t, f.Remove("x"))
	_, ok := f.Get(own, "x")
	require.False(t, ok)
}

func TestFair_OfOwnersWithAsManyWhoUsedOneLastTheLongestAgoMakesRoom(t *testing.T) {
	t.Parallel()
	f := NewFair[string, int](100)
	f.Add(Owner{"good.test", "good.test"}, "used", 1)
	for i := range 10_000 { // each of another domain
		f.Add(Owner{fmt.Sprint(i), ""}, fmt.Sprint(i), i)
		require.True(t, f.Contains(fmt.Sprint(i)), "what is new is taken")
		if i%90 == 0 {
			_, ok := f.Get(Owner{"good.test", "good.test"}, "used")
			require.True(t, ok, "after %d", i)
		}
	}
	require.Len(t, f.All(), 100)
}

func TestFair_WhatThereIsIsNotAddedAnew(t *testing.T) {
	t.Parallel()
	f := NewFair[string, int](2)
	own := Owner{"a", "a"}
	require.Equal(t, 1, f.GetOrAdd(own, "x", 1))
	require.Equal(t, 2, f.GetOrAdd(own, "y", 2))
	require.Equal(t, 1, f.GetOrAdd(own, "x", 3))
	require.Equal(t, 4, f.GetOrAdd(own, "z", 4))
	require.Equal(t, map[string]int{"x": 1, "z": 4}, f.All())
}

// Whatever is done, the shares are those of the entries.
func TestFair_SharesAreThoseOfTheEntries(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := NewFair[int, int](8)
		owner := func() Owner {
			return Owner{rapid.StringMatching("[ab]").Draw(t, "wide"), rapid.StringMatching("[xyz]").Draw(t, "narrow")}
		}
		key := rapid.IntRange(0, 15)
		t.Repeat(map[string]func(*rapid.T){
			"add":    func(t *rapid.T) { f.Add(owner(), key.Draw(t, "key"), 1) },
			"get":    func(t *rapid.T) { f.Get(owner(), key.Draw(t, "key")) },
			"remove": func(t *rapid.T) { f.Remove(key.Draw(t, "key")) },
			"": func(t *rapid.T) {
				n, most := 0, 0
				for owner, own := range f.owned {
					if own.Len() == 0 || own.Len() != f.narrow[owner.Wide].of[owner.Narrow] {
						t.Fatalf("%v has %d, counted as %d", owner, own.Len(), f.narrow[owner.Wide].of[owner.Narrow])
					}
					n += own.Len()
				}
				for _, has := range f.wide.of {
					n -= has
					most = max(most, has)
				}
				for many, owners := range f.wide.with {
					for at := owners.Front(); at != nil; at = at.Next() {
						if f.wide.of[at.Value.(string)] != many {
							t.Fatalf("%v has %d, listed with %d", at.Value, f.wide.of[at.Value.(string)], many)
						}
					}
				}
				if n != 0 || len(f.entries) > f.size || most != f.wide.most {
					t.Fatalf("%d counted too little; %d entries; the most is %d, not %d", n, len(f.entries), most, f.wide.most)
				}
			},
		})
	})
}
