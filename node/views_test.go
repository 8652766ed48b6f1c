package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

func TestStore_ADiskThatOthersHaveFilledIsAProblem(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for what, tc := range map[string]struct {
		usage store.Usage
		full  bool
	}{
		"room":                                     {store.Usage{FreeDisk: 30 * gib, Bytes: 2 * gib}, false},
		"a disk that the cache has filled":         {store.Usage{FreeDisk: 5 * gib, Bytes: 20 * gib}, false},
		"a disk that others have filled":           {store.Usage{FreeDisk: 5 * gib}, true},
		"a disk that others have filled further":   {store.Usage{FreeDisk: 0}, true},
		"the same, and a cache that is all pinned": {store.Usage{FreeDisk: 5 * gib, Bytes: 20 * gib, PinnedBytes: 20 * gib}, true},
		"a file system that does not tell":         {store.Usage{FreeDisk: -1}, false},
	} {
		err := noRoom(tc.usage, 5*gib)
		if !tc.full {
			require.NoError(t, err, what)
			continue
		}
		require.ErrorIs(t, err, content.ErrNoSpace, what)
		require.ErrorContains(t, err, "no space", what)
	}
}

func TestViews_WhatHasNoRepositoryIsNotSaidToComeFromOne(t *testing.T) {
	t.Parallel()
	require.Empty(t, repositoryName(content.Repository{}))
	require.Equal(t, "docker.io/library/redis",
		repositoryName(content.Repository{Registry: "docker.io", Name: "library/redis"}))
}
