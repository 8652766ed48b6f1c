package main

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/test/registrytest"
)

func TestCounters_OfTheFrontAreAnswersAndNoRefusals(t *testing.T) {
	t.Parallel()
	c := newCached(t)
	password := registrytest.Basic("u", "pass")
	c.origin.Protect(c.repo.Name, password)
	manifest, layer := c.push()
	require.Equal(t, http.StatusUnauthorized, c.get("manifests", manifest, ""))
	require.Equal(t, registry.Counters{}, c.front.Counters())
	require.Equal(t, http.StatusOK, c.get("manifests", manifest, password))
	require.Equal(t, http.StatusOK, c.get("blobs", layer, password))
	require.Equal(t, registry.Counters{Hits: 2}, c.front.Counters())
}
